"""The vision model of CLIP, as Wan 2.1 reads pictures, as a torch module to export.

Knows the arithmetic of `transformers.CLIPVisionModel`, and which of its hidden states `WanImageToVideoPipeline` takes.
Knows nothing of how pictures are resized. Letters: N pictures, S tokens of one, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from mutoscope.pictures import CLIP_PIXELS
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel

from ...graphs.trace import SymbolicValue

FEEDS = {"image_embeds": "image_embeds"}
"""The output of this graph, and the input of the denoiser that it feeds."""


class ImageEncoder(nn.Module):
    """The `image_encoder` graph: `pixels` f32 `[N,3,224,224]` -> `image_embeds` f32 `[(N S),D]`.

    Wan takes the hidden states before the last layer, so that layer is left out. Products are in `network_dtype`, norms
    and sums in float32.

    Raises:
        ValueError: the model takes pictures of another size.
    """

    def __init__(self, model: CLIPVisionModel, network_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if model.config.image_size != CLIP_PIXELS:
            raise ValueError(
                f"image_size of the image encoder is {model.config.image_size}; supported is {CLIP_PIXELS}, as in Wan "
                "2.1 I2V-14B"
            )
        self.model = model
        self.network_dtype = network_dtype

    def forward(self, pixels: Tensor) -> Tensor:
        """Shapes as above."""
        embeddings, dtype = self.model.embeddings, self.network_dtype
        weight = embeddings.patch_embedding.weight.to(dtype)
        patches = F.conv2d(pixels.to(dtype), weight, stride=embeddings.patch_size).float().flatten(2).transpose(1, 2)
        first = embeddings.class_embedding.float().expand(len(pixels), 1, -1)
        hidden = torch.cat([first, patches], dim=1) + embeddings.position_embedding.weight.float()
        hidden = _norm(self.model.pre_layrnorm, hidden)
        for layer in self.model.encoder.layers[:-1]:
            hidden = hidden + self._attention(layer.self_attn, _norm(layer.layer_norm1, hidden))
            inner = _linear(layer.mlp.fc1, _norm(layer.layer_norm2, hidden), dtype)
            hidden = hidden + _linear(layer.mlp.fc2, layer.mlp.activation_fn(inner), dtype).float()
        return hidden.flatten(0, 1)

    def _attention(self, attention: Any, hidden: Tensor) -> Tensor:
        heads = self.model.config.num_attention_heads
        q, k, v = (
            _linear(layer, hidden, self.network_dtype)
            for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed, *_ = torch.onnx.ops.attention(q, k, v, q_num_heads=heads, kv_num_heads=heads)
        return _linear(attention.out_proj, mixed, self.network_dtype).float()


def symbolic_inputs(model: CLIPVisionModel, pictures: int) -> list[SymbolicValue]:
    """Name, dtype and shape of the input."""
    return [("pixels", "float32", (pictures, 3, CLIP_PIXELS, CLIP_PIXELS))]


def symbolic_outputs(model: CLIPVisionModel, pictures: int) -> list[SymbolicValue]:
    """Name, dtype and shape of the output."""
    return [("image_embeds", "float32", (pictures * tokens_of(model), model.config.hidden_size))]


def tokens_of(model: CLIPVisionModel) -> int:
    """S: one for each patch, and one for the whole picture."""
    return int((model.config.image_size // model.config.patch_size) ** 2 + 1)


def example_inputs(model: CLIPVisionModel, pictures: int, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs. The same seed gives the same."""
    return {"pixels": torch.randn(pictures, 3, CLIP_PIXELS, CLIP_PIXELS, generator=torch.Generator().manual_seed(seed))}


def _linear(layer: nn.Linear, x: Tensor, dtype: torch.dtype) -> Tensor:
    return F.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), norm.weight.float(), norm.bias.float(), norm.eps)
