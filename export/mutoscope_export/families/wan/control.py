"""One denoising step of Wan VACE, whose videos follow a control clip, a mask and reference pictures.

Knows the arithmetic of `WanVACETransformer3DModel`. Knows nothing of how control is made of clips and pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import WanVACETransformer3DModel
from torch import Tensor

from ...graphs.trace import SymbolicValue, named
from ..family import Call
from ..solver_line import step
from . import denoiser
from .denoiser import Context, linear
from .modulation import Modulation

FEEDS = {"condition": "control"}
"""The output of the VAE's encoder, and the input of the denoiser that it becomes a part of."""

SCALE = "control_scale"
"""The input of the denoiser that says how strongly each layer that is controlled follows the control."""


class ControlStep(denoiser.DenoiserStep):
    """The `denoiser` graph of a model that has a second row of blocks, the VACE blocks, which read the control.

    Each VACE block gives a hint to one layer of the network. The first one starts from the hidden states of the step,
    so nothing that they compute is the same for two steps.

    Raises:
        ValueError: the transformer is not that of Wan 2.1 VACE, but for its size.
    """

    def __init__(self, transformer: WanVACETransformer3DModel, network_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(transformer, network_dtype)
        self.hinted_layers = frozenset(transformer.config.vace_layers)
        names = [name for name, _, _ in symbolic_inputs(transformer)]
        self.forward = named(self.run, names)  # type: ignore[method-assign]  # it has further inputs

    def run(self, latents: Tensor, state: Tensor, timestep: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """All of `symbolic_inputs` in their order. Returns what `DenoiserStep` returns."""
        prompt_embeds, guidance_weights, solver_a, solver_b, control, control_scale = inputs
        velocity = self._velocity(latents, timestep, [prompt_embeds], guidance_weights, control, control_scale)
        return step(velocity, state, solver_a, solver_b)

    def _blocks(
        self,
        hidden: Tensor,
        context: Context,
        modulation: Modulation,
        rotary: tuple[Tensor, Tensor],
        *further: Tensor,
    ) -> Tensor:
        """With the hint of a VACE block after each layer that has one; `further` is the control and its scale.

        Each VACE block runs just before the layer that it gives its hint to, so that one hint is in memory at a time.
        """
        control, control_scale = further
        patches = self._patchify(control, self.transformer.vace_patch_embedding)
        controlled = self._of_all_branches(patches, branches=context[0].shape[0])
        hints = iter(zip(self.transformer.vace_blocks, control_scale.unbind(), strict=True))
        for layer, block in enumerate(self.transformer.blocks):
            hint = None
            if layer in self.hinted_layers:
                vace_block, scale = next(hints)
                if vace_block.proj_in is not None:
                    controlled = linear(vace_block.proj_in, controlled, self.network_dtype).float() + hidden
                controlled = self._block(vace_block, controlled, context, modulation, rotary)
                hint = linear(vace_block.proj_out, controlled, self.network_dtype).float() * scale
            hidden = self._block(block, hidden, context, modulation, rotary)
            if hint is not None:
                hidden = hidden + hint
        return hidden

    @staticmethod
    def refuse_unsupported(config: Any) -> None:
        denoiser.DenoiserStep.refuse_unsupported(config)
        if list(config.vace_layers) != sorted(set(config.vace_layers)):
            raise ValueError(
                f"vace_layers of the transformer is {config.vace_layers}; supported are layers in ascending order, "
                "each once, such as those of Wan 2.1 VACE 1.3B, 0, 2, 4 and so on. Get the checkpoint again"
            )


def symbolic_inputs(transformer: WanVACETransformer3DModel) -> list[SymbolicValue]:
    """Those of every denoiser, and the two of the control; F counts the latent frames of references, too."""
    return [
        *denoiser.symbolic_inputs(transformer),
        (FEEDS["condition"], "float32", (transformer.config.vace_in_channels, "F", "h", "w")),
        (SCALE, "float32", (len(transformer.config.vace_layers),)),
    ]


def example_inputs(
    transformer: WanVACETransformer3DModel, sizes: Mapping[str, int] = denoiser.EXAMPLE_SIZES, seed: int = 0
) -> dict[str, Tensor]:
    """As `denoiser.example_inputs`, with random control, and a scale of its own for each layer."""
    generator = torch.Generator().manual_seed(seed + 1)
    config = transformer.config
    shape = (config.vace_in_channels, sizes["F"], sizes["h"], sizes["w"])
    return denoiser.example_inputs(transformer, sizes, seed) | {
        FEEDS["condition"]: torch.randn(shape, generator=generator),
        SCALE: 0.5 + torch.rand(len(config.vace_layers), generator=generator),
    }


def recorded_inputs(call: Call) -> dict[str, Tensor]:
    """As `denoiser.recorded_inputs`, with the control and its scales."""
    return denoiser.recorded_inputs(call) | {
        FEEDS["condition"]: call["control_hidden_states"][0],
        SCALE: call["control_hidden_states_scale"],
    }
