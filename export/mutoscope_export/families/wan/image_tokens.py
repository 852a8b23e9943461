"""One denoising step of Wan 2.1's image-to-video models, which also attend to tokens of what the pictures show.

Knows where `WanTransformer3DModel` puts what CLIP saw. Knows nothing of CLIP or of pictures. Letters as in `denoiser`;
in addition I tokens of the pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor
from torch.nn import functional as F

from ...graphs.trace import SymbolicValue, named
from ..family import Call
from ..solver_line import step
from . import denoiser, image_encoder, whole_clip
from .denoiser import Context, layer_norm, linear, rms_norm

_EMBEDS = image_encoder.FEEDS["image_embeds"]


class ClipAndImageStep(denoiser.DenoiserStep):
    """The `denoiser` graph of a model that takes what `ClipStep` takes, and tokens of its pictures.

    The class of Diffusers has text and pictures in one tensor, and takes all but its last 512 tokens for those of
    pictures. Here they are two inputs, so a text may have any length.

    Raises:
        ValueError: the transformer is not that of Wan 2.1 I2V or FLF2V, but for its size.
    """

    def __init__(self, transformer: WanTransformer3DModel, network_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(transformer, network_dtype)
        names = [name for name, _, _ in symbolic_inputs(transformer, tokens=0)]
        self.forward = named(self.run, names)  # type: ignore[method-assign]  # it has further inputs

    def run(self, latents: Tensor, state: Tensor, timestep: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """All of `symbolic_inputs` in their order. Returns what `DenoiserStep` returns."""
        prompt_embeds, guidance_weights, solver_a, solver_b, condition, given, image_embeds = inputs
        seen = whole_clip.beside(latents, condition, given)
        velocity = self._velocity(seen, timestep, [prompt_embeds, image_embeds], guidance_weights)
        return step(velocity, state, solver_a, solver_b)

    def _embed(self, embeds: Sequence[Tensor]) -> Context:
        """The text `[B,L,E]` and the pictures `[B,I,E]`, the same for all branches."""
        text, pictures = embeds
        embedder = self.transformer.condition_embedder.image_embedder
        tokens = pictures[None]
        if embedder.pos_embed is not None:
            tokens = tokens + embedder.pos_embed.float()
        tokens = _norm(embedder.norm1, tokens)
        inner = F.gelu(linear(embedder.ff.net[0].proj, tokens, self.network_dtype))
        tokens = _norm(embedder.norm2, linear(embedder.ff.net[2], inner, self.network_dtype).float())
        return self._embed_text(text), tokens.to(self.network_dtype)

    def _cross_attention(self, attention: WanAttention, queries: Tensor, context: Context) -> Tensor:
        text, pictures = context
        q, k, v = self._projected(attention, queries, text)
        keys = rms_norm(attention.norm_added_k, linear(attention.add_k_proj, pictures, self.network_dtype))
        values = linear(attention.add_v_proj, pictures, self.network_dtype)
        keys, values = (each.expand(text.shape[0], -1, -1) for each in (keys, values))
        return self._project(attention, self._mix(q, k, v) + self._mix(q, keys, values))

    @staticmethod
    def refuse_unsupported(config: Any) -> None:
        width = config.num_attention_heads * config.attention_head_dim
        if config.image_dim is None or config.added_kv_proj_dim != width:
            raise ValueError(
                f"config of the transformer has image_dim {config.image_dim} and added_kv_proj_dim "
                f"{config.added_kv_proj_dim}; in image-to-video models with an image encoder, such as Wan 2.1 I2V-14B, "
                f"both are numbers, the second the width of the transformer, {width}. Get the checkpoint again"
            )
        whole_clip.refuse_other_channels(config)


def symbolic_inputs(transformer: WanTransformer3DModel, tokens: int) -> list[SymbolicValue]:
    """Those of `whole_clip`, and what CLIP saw."""
    return [*whole_clip.symbolic_inputs(transformer), (_EMBEDS, "float32", (tokens, transformer.config.image_dim))]


def example_inputs(
    transformer: WanTransformer3DModel,
    sizes: Mapping[str, int] = denoiser.EXAMPLE_SIZES,
    seed: int = 0,
    *,
    tokens: int,
) -> dict[str, Tensor]:
    """As `whole_clip.example_inputs`, with random tokens."""
    generator = torch.Generator().manual_seed(seed + 2)
    embeds = torch.randn(tokens, transformer.config.image_dim, generator=generator)
    return whole_clip.example_inputs(transformer, sizes, seed) | {_EMBEDS: embeds}


def recorded_inputs(call: Call, channels: int) -> dict[str, Tensor]:
    """As `whole_clip.recorded_inputs`, with the tokens of all pictures, each of which is a row of the call."""
    return whole_clip.recorded_inputs(call, channels) | {_EMBEDS: call["encoder_hidden_states_image"].flatten(0, 1)}


def _norm(norm: Any, x: Tensor) -> Tensor:
    return layer_norm(x, norm.weight.float(), norm.bias.float(), norm.eps)
