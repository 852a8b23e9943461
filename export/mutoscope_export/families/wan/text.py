"""The UMT5 text encoder of Wan as a torch module ready for export.

Knows the arithmetic of `transformers.UMT5EncoderModel` and that Wan replaces padding by zeros. Knows nothing of
tokenizers, prompts or ONNX files. Shape letters are those of docs/architecture.md; in addition N heads and P distances.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import UMT5EncoderModel
from transformers.models.umt5.modeling_umt5 import UMT5Attention, UMT5DenseGatedActDense, UMT5LayerNorm

from ...graphs.trace import SymbolicValue

FEEDS = {"prompt_embeds": "prompt_embeds"}
"""The output of this graph, and the input of the denoiser that it feeds."""

# What `wo` of the feed-forward layers gives overflows in float16; transformers keeps that layer in float32 for it. A
# power of two is exact in every type, costs nothing, and leaves room up to 4e6.
_HEADROOM = 2.0**-6

# All the linear layers. Their activations have outliers, which makes T5 and its kin hard to quantise.
QUANTIZABLE_WEIGHTS = r"block\.\d+\.layer\.\d+\.(SelfAttention\.[qkvo]|DenseReluDense\.w(i_0|i_1|o))\.weight"


class TextEncoder(nn.Module):
    """The `text_encoder` graph around the weights of `encoder`, which it shares.

    `network_dtype` is the type of the matrix products; norms, softmax and residual sums are float32 whatever it is, and
    so is the output. The checkpoint's own type does not matter: each weight is converted where it is used.

    The layers are written out here because the library's own do not export with a free length.

    Raises:
        ValueError: the encoder's feed-forward layers are not gated by tanh-GELU.
    """

    def __init__(self, encoder: UMT5EncoderModel, network_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        config = encoder.config
        if not config.is_gated_act or config.dense_act_fn != "gelu_new":
            raise ValueError(
                f"this text encoder's feed_forward_proj is {config.feed_forward_proj!r}. Supported is 'gated-gelu', as "
                "UMT5Config has it by default; export a checkpoint with such a text encoder."
            )
        self.stack = encoder.encoder
        self.network_dtype = network_dtype
        self.max_distance: int = config.relative_attention_max_distance
        for index, block in enumerate(self.stack.block):
            bias = _bias_by_distance(block.layer[0].SelfAttention, self.max_distance)
            self.register_buffer(f"bias_{index}", bias, persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`input_ids` and `attention_mask` i64 `[B,L]` -> `prompt_embeds` f32 `[B,L,D]`, zero where the mask is."""
        hidden = F.embedding(input_ids, self.stack.embed_tokens.weight.to(self.network_dtype)).float()
        mask = torch.where(attention_mask[:, None, None] == 0, torch.finfo(torch.float32).min, 0.0)
        places = torch.arange(input_ids.shape[1])
        distances = (places - places[:, None]).clamp(-self.max_distance, self.max_distance) + self.max_distance
        for index, block in enumerate(self.stack.block):
            bias = getattr(self, f"bias_{index}").index_select(1, distances.flatten()).unflatten(1, distances.shape)
            attention, feed_forward = block.layer[0], block.layer[1]
            normed = _rms_norm(attention.layer_norm, hidden)
            hidden = hidden + self._attend(attention.SelfAttention, normed, bias + mask)
            normed = _rms_norm(feed_forward.layer_norm, hidden)
            hidden = hidden + self._feed(feed_forward.DenseReluDense, normed)
        return _rms_norm(self.stack.final_layer_norm, hidden) * attention_mask[..., None]

    def _attend(self, attention: UMT5Attention, hidden: Tensor, bias: Tensor) -> Tensor:
        """`hidden` `[B,L,D]` to itself, with `bias` `[B,N,L,L]` on the scores, which UMT5 does not scale."""
        heads = (-1, attention.key_value_proj_dim)
        query, key, value = (
            self._linear(layer, hidden).unflatten(-1, heads).transpose(1, 2)
            for layer in (attention.q, attention.k, attention.v)
        )
        weights = ((query @ key.transpose(2, 3)).float() + bias).softmax(dim=-1)
        return self._linear(attention.o, (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)).float()

    def _feed(self, layer: UMT5DenseGatedActDense, hidden: Tensor) -> Tensor:
        gate = F.gelu(self._linear(layer.wi_0, hidden), approximate="tanh")
        inner = gate * self._linear(layer.wi_1, hidden)
        return self._linear(layer.wo, inner * _HEADROOM).float() / _HEADROOM

    def _linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return F.linear(x.to(self.network_dtype), layer.weight.to(self.network_dtype))


def symbolic_inputs(encoder: UMT5EncoderModel) -> list[SymbolicValue]:
    """Name, dtype and shape of each input; a letter is a dimension free at run time."""
    return [("input_ids", "int64", ("B", "L")), ("attention_mask", "int64", ("B", "L"))]


def symbolic_outputs(encoder: UMT5EncoderModel) -> list[SymbolicValue]:
    """Name, dtype and shape of each output, as `symbolic_inputs`."""
    return [("prompt_embeds", "float32", ("B", "L", encoder.config.d_model))]


def example_inputs(
    encoder: UMT5EncoderModel, *, branches: int = 2, text_tokens: int = 7, seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs of the graph, padded at the end by a different number of tokens in each branch."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(encoder.config.vocab_size, (branches, text_tokens), generator=generator)
    lengths = torch.randint(1, text_tokens + 1, (branches, 1), generator=generator)
    return {"input_ids": input_ids, "attention_mask": (torch.arange(text_tokens) < lengths).long()}


def _bias_by_distance(attention: UMT5Attention, max_distance: int) -> Tensor:
    """What is added to a score, by head and by how far the key stands after the query: f32 `[N,P]`.

    P counts from -max_distance to max_distance; all beyond share the bias of the ends. Looking it up keeps the
    logarithm of the bucketing, whose rounding decides at powers of two, out of the graph.
    """
    bias: Tensor = attention.compute_bias(max_distance + 1, max_distance + 1)[0].detach().float()
    before, after = bias[:, -1], bias[:, 0]  # as the last query sees all keys, and as the first one does
    return torch.cat([before, after[:, 1:]], dim=1)


def _rms_norm(norm: UMT5LayerNorm, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight.float(), norm.variance_epsilon)
