"""One denoising step of Wan text-to-video models as a torch module to export: network, guidance and solver line.

Knows the arithmetic of `WanTransformer3DModel` (Wan 2.1) and the contract of the denoiser graph. Knows nothing of ONNX
files, schedules or prompts. Shape letters are those of docs/architecture.md; in addition S tokens of the video, N
heads, E = N x head width, and f, y, x the patches along frames, height and width.

Hidden states are one row of all branches' tokens, `[1, (B S), E]`, and attention alone tells branches apart,
`[B, S, E]`: a compiler for GPUs then needs no more memory a branch for two than for one. Attention and rotary
embedding split the heads inside their ONNX operators, so no block transposes anything. All branches share one timestep,
so modulation has no batch dimension and enters each layer normalization as its weight and bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention, WanRotaryPosEmbed, WanTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from ...graphs.trace import SymbolicValue
from ..family import Call
from ..solver_line import step
from .modulation import Modulation

# Weights whose products `int8` quantizes. Time and patch embedding, modulation and the last projection stay float32.
QUANTIZABLE_WEIGHTS = (
    r"blocks\.\d+\.(attn[12]\.(to_(q|k|v|out\.0)|add_[kv]_proj)|ffn\.net\.(0\.proj|2))\.weight"
    r"|text_embedder\..*weight"
)

Context = tuple[Tensor, ...]
"""What the tokens of the video attend to: the text, and maybe more."""

_TEXT_TO_VIDEO_ONLY = ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len")


class DenoiserStep(nn.Module):
    """The `denoiser` graph around the weights of `transformer`, which it shares.

    `network_dtype` is the type of the matrix products and of attention. Norms, modulation, rotary embedding and
    residual sums are float32 whatever it is. The checkpoint's own type does not matter: each weight is converted where
    it is used, and the exported graph stores the converted weight.

    Raises:
        ValueError: the transformer is not plain text-to-video.
    """

    cos_f: Tensor
    cos_y: Tensor
    cos_x: Tensor
    sin_f: Tensor
    sin_y: Tensor
    sin_x: Tensor

    def __init__(self, transformer: WanTransformer3DModel, network_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        config = transformer.config
        self.refuse_unsupported(config)
        self.transformer = transformer
        self.network_dtype = network_dtype
        self.patch_size: tuple[int, int, int] = tuple(config.patch_size)
        self.num_heads: int = config.num_attention_heads
        self.latent_channels = latent_channels(transformer)
        # Built anew: `transformer.to(bfloat16)` would have rounded the tables of the transformer itself.
        rope = WanRotaryPosEmbed(config.attention_head_dim, config.patch_size, config.rope_max_seq_len)
        widths = [rope.t_dim // 2, rope.h_dim // 2, rope.w_dim // 2]
        for name, table in (("cos", rope.freqs_cos), ("sin", rope.freqs_sin)):
            for axis, part in zip("fyx", table[:, ::2].split(widths, dim=1), strict=True):
                self.register_buffer(f"{name}_{axis}", part.float().clone(), persistent=False)

    def forward(
        self,
        latents: Tensor,
        state: Tensor,
        timestep: Tensor,
        prompt_embeds: Tensor,
        guidance_weights: Tensor,
        solver_a: Tensor,
        solver_b: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Shapes as in `symbolic_inputs`. Returns `next_state` `[K,C,F,h,w]` and `velocity_peak` `[]`."""
        velocity = self._velocity(latents, timestep, [prompt_embeds], guidance_weights)
        return step(velocity, state, solver_a, solver_b)

    def _velocity(
        self, latents: Tensor, timestep: Tensor, embeds: Sequence[Tensor], guidance_weights: Tensor, *further: Tensor
    ) -> Tensor:
        """The network at batch B, summed with the guidance weights: `[C,F,h,w]`.

        `latents` has all channels that the network takes; of `embeds`, those of the prompt come first. `further` is for
        the blocks.
        """
        transformer = self.transformer
        branches = embeds[0].shape[0]
        grid = self._grid(latents)
        modulation = self._modulation(timestep, branches, grid)
        context = self._embed(embeds)
        rotary = self._rotary(grid, branches)

        hidden = self._of_all_branches(self._patchify(latents, transformer.patch_embedding), branches)
        hidden = self._blocks(hidden, context, modulation, rotary, *further)
        shift, scale = modulation.last(transformer.scale_shift_table.float())
        hidden = modulation.norm(hidden, scale, shift, transformer.norm_out.eps)
        patches = _of_branches(branches, linear(transformer.proj_out, hidden, torch.float32))
        return self._unpatchify((guidance_weights[:, None, None] * patches).sum(0), grid)

    def _grid(self, latents: Tensor) -> tuple[int, ...]:
        """f, y and x."""
        return tuple(size // patch for size, patch in zip(latents.shape[1:], self.patch_size, strict=True))

    def _patchify(self, latents: Tensor, embedding: nn.Conv3d) -> Tensor:
        """`C (f p) (y q) (x r) -> 1 (f y x) (C p q r)`, projected to `[1,S,E]`.

        The same products as the authors' strided convolution, and the only transpose is one of the small latents.
        """
        (f, y, x), (p, q, r) = self._grid(latents), self.patch_size
        pixels = latents.reshape(embedding.in_channels, f, p, y, q, x, r).permute(1, 3, 5, 0, 2, 4, 6)
        weight = embedding.weight.flatten(1)
        pixels = pixels.reshape(1, f * y * x, weight.shape[1])
        return F.linear(pixels, weight.float(), cast(Tensor, embedding.bias).float())

    @staticmethod
    def _of_all_branches(tokens: Tensor, branches: int) -> Tensor:
        """`[1,S,E]`, the same for each branch -> `[1,(B S),E]`."""
        return _in_a_row(tokens.expand(branches, -1, -1))

    def _unpatchify(self, patches: Tensor, grid: tuple[int, ...]) -> Tensor:
        """`(f y x) (p q r C) -> C (f p) (y q) (x r)`."""
        (f, y, x), (p, q, r) = grid, self.patch_size
        pixels = patches.reshape(f, y, x, p, q, r, self.latent_channels).permute(6, 0, 3, 1, 4, 2, 5)
        return pixels.reshape(self.latent_channels, f * p, y * q, x * r)

    def _modulation(self, timestep: Tensor, branches: int, grid: tuple[int, ...]) -> Modulation:
        """What `timestep` does to hidden states of this size."""
        return Modulation(*self._embed_time(timestep))

    def _embed_time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """The time embedding `[1,E]` and what all blocks are modulated with, `[6 E]`; in turn for several."""
        embedder = self.transformer.condition_embedder
        time = embedder.timesteps_proj(timestep)
        time = linear(embedder.time_embedder.linear_1, time, torch.float32)
        time = linear(embedder.time_embedder.linear_2, F.silu(time), torch.float32)
        modulations = linear(embedder.time_proj, F.silu(time), torch.float32)
        return time, modulations.flatten()

    def _embed(self, embeds: Sequence[Tensor]) -> Context:
        """What the tokens of the video attend to, in the network's type; of the text `[B,L,D]` -> `[B,L,E]`."""
        (prompt_embeds,) = embeds
        return (self._embed_text(prompt_embeds),)

    def _embed_text(self, prompt_embeds: Tensor) -> Tensor:
        """`[B,L,D]` -> `[B,L,E]` in the network's type."""
        embedder = self.transformer.condition_embedder.text_embedder
        inner = F.gelu(linear(embedder.linear_1, prompt_embeds, self.network_dtype), approximate="tanh")
        return linear(embedder.linear_2, inner, self.network_dtype)

    def _rotary(self, grid: tuple[int, ...], branches: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every token's position, `[B, S, head width / 2]`."""
        f, y, x = grid

        def spread(along_f: Tensor, along_y: Tensor, along_x: Tensor) -> Tensor:
            parts = (along_f[:f, None, None], along_y[None, :y, None], along_x[None, None, :x])
            table = torch.cat([part.expand(f, y, x, -1) for part in parts], dim=-1)
            return table.reshape(1, f * y * x, table.shape[-1]).expand(branches, -1, -1)

        return spread(self.cos_f, self.cos_y, self.cos_x), spread(self.sin_f, self.sin_y, self.sin_x)

    def _blocks(
        self,
        hidden: Tensor,
        context: Context,
        modulation: Modulation,
        rotary: tuple[Tensor, Tensor],
        *further: Tensor,
    ) -> Tensor:
        """All transformer blocks, one after the other; `hidden` as in `_block`."""
        for block in self.transformer.blocks:
            hidden = self._block(block, hidden, context, modulation, rotary)
        return hidden

    def _block(
        self,
        block: WanTransformerBlock,
        hidden: Tensor,
        context: Context,
        modulation: Modulation,
        rotary: tuple[Tensor, Tensor],
    ) -> Tensor:
        """One transformer block; `hidden` `[1,(B S),E]` float32 in and out."""
        branches = context[0].shape[0]
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation.of_block(block.scale_shift_table.float())
        normed = _of_branches(branches, modulation.norm(hidden, scale, shift, block.norm1.eps))
        hidden = hidden + modulation.gate(self._attention(block.attn1, normed, normed, rotary), gate)

        normed = hidden
        if not isinstance(block.norm2, nn.Identity):
            normed = layer_norm(hidden, block.norm2.weight.float(), block.norm2.bias.float(), block.norm2.eps)
        hidden = hidden + self._cross_attention(block.attn2, _of_branches(branches, normed), context)

        normed = modulation.norm(hidden, ffn_scale, ffn_shift, block.norm3.eps)
        inner = F.gelu(linear(block.ffn.net[0].proj, normed, self.network_dtype), approximate="tanh")
        return hidden + modulation.gate(linear(block.ffn.net[2], inner, self.network_dtype).float(), ffn_gate)

    def _cross_attention(self, attention: WanAttention, queries: Tensor, context: Context) -> Tensor:
        """As `_attention`, to what `_embed` gives."""
        (text,) = context
        return self._attention(attention, queries, text, None)

    def _attention(
        self, attention: WanAttention, queries: Tensor, source: Tensor, rotary: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Attention of `queries` `[B,S,E]` to `source` `[B,S or L,E]`, projected, float32 `[1,(B S),E]`."""
        q, k, v = self._projected(attention, queries, source)
        if rotary is not None:
            q = torch.onnx.ops.rotary_embedding(q, *rotary, interleaved=True, num_heads=self.num_heads)
            k = torch.onnx.ops.rotary_embedding(k, *rotary, interleaved=True, num_heads=self.num_heads)
        return self._project(attention, self._mix(q, k, v))

    def _projected(self, attention: WanAttention, queries: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, and keys and values of the source, before any rotation."""
        # One cast for the three projections, so that they also share one quantization of it.
        cast_queries = queries.to(self.network_dtype)
        cast_source = cast_queries if source is queries else source.to(self.network_dtype)
        q = rms_norm(attention.norm_q, linear(attention.to_q, cast_queries, self.network_dtype))
        k = rms_norm(attention.norm_k, linear(attention.to_k, cast_source, self.network_dtype))
        return q, k, linear(attention.to_v, cast_source, self.network_dtype)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The values `[B,L,E]`, as far as each of the queries `[B,S,E]` is like their keys."""
        mixed, *_ = torch.onnx.ops.attention(
            q.to(v.dtype), k.to(v.dtype), v, q_num_heads=self.num_heads, kv_num_heads=self.num_heads
        )
        return mixed

    def _project(self, attention: WanAttention, mixed: Tensor) -> Tensor:
        return linear(attention.to_out[0], _in_a_row(mixed), self.network_dtype).float()

    @staticmethod
    def refuse_unsupported(config: Any) -> None:
        """
        Raises:
            ValueError: a transformer with this configuration is not plain text-to-video.
        """
        given = {name: getattr(config, name) for name in _TEXT_TO_VIDEO_ONLY if getattr(config, name) is not None}
        if (config.out_channels or config.in_channels) != config.in_channels:
            given |= {"in_channels": config.in_channels, "out_channels": config.out_channels}
        if given:
            raise ValueError(
                f"this transformer is not plain text-to-video: its config has {given}. Supported are Wan text-to-video "
                f"transformers, where out_channels equals in_channels and {', '.join(_TEXT_TO_VIDEO_ONLY)} are null; "
                "export the text-to-video checkpoint of the model line instead."
            )


def latent_channels(transformer: WanTransformer3DModel) -> int:
    """C; the network takes more channels where it is also given a condition."""
    return int(transformer.config.out_channels or transformer.config.in_channels)


def symbolic_inputs(transformer: WanTransformer3DModel) -> list[SymbolicValue]:
    """Name, dtype and shape of each input; a letter is a dimension free at run time, a number a fact of the model."""
    c = latent_channels(transformer)
    return [
        ("latents", "float32", (c, "F", "h", "w")),
        ("state", "float32", ("K", c, "F", "h", "w")),
        ("timestep", "float32", (1,)),
        ("prompt_embeds", "float32", ("B", "L", transformer.config.text_dim)),
        ("guidance_weights", "float32", ("B",)),
        ("solver_a", "float32", ("K", "K")),
        ("solver_b", "float32", ("K",)),
    ]


def symbolic_outputs(transformer: WanTransformer3DModel) -> list[SymbolicValue]:
    """Name, dtype and shape of each output, as `symbolic_inputs`."""
    return [
        ("next_state", "float32", ("K", latent_channels(transformer), "F", "h", "w")),
        ("velocity_peak", "float32", ()),
    ]


EXAMPLE_SIZES: Mapping[str, int] = {"B": 2, "L": 5, "F": 4, "h": 6, "w": 8, "K": 3}


def example_inputs(
    transformer: WanTransformer3DModel, sizes: Mapping[str, int] = EXAMPLE_SIZES, seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs of the graph, for a size of each symbol. The same seed gives the same inputs.

    For tracing, every size must be at least 2 patches: the exporter treats sizes of one as constants.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        name: torch.randn([size if isinstance(size, int) else sizes[size] for size in shape], generator=generator)
        for name, _, shape in symbolic_inputs(transformer)
    }
    inputs["timestep"] = 1000 * torch.rand(1, generator=generator)
    return inputs


def recorded_inputs(call: Call) -> dict[str, Tensor]:
    """The inputs of the graph that stand for one call of Diffusers' network, but for the text."""
    return {"latents": call["hidden_states"][0], "timestep": call["timestep"][:1]}


def linear(layer: nn.Linear, x: Tensor, dtype: torch.dtype) -> Tensor:
    """A layer whose product is in `dtype`."""
    return F.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))


def _in_a_row(x: Tensor) -> Tensor:
    """`[B,S,E]` -> `[1,(B S),E]`."""
    return x.reshape(1, -1, x.shape[-1])


def _of_branches(branches: int, x: Tensor) -> Tensor:
    """`[1,(B S),E]` -> `[B,S,E]`."""
    return x.reshape(branches, -1, x.shape[-1])


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Over the last axis."""
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def rms_norm(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """Over the last axis, in float32."""
    return F.rms_norm(x.float(), (x.shape[-1],), norm.weight.float(), norm.eps)
