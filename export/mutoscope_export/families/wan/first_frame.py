"""One denoising step of Wan 2.2 TI2V 5B, which makes videos from text and from a first frame with the same network.

Knows what `WanImageToVideoPipeline` does around the network where its `expand_timesteps` is set, and how
`WanTransformer3DModel` is given a timestep for each token. Knows nothing of pictures or of the VAE.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from ...graphs.trace import SymbolicValue, named
from ..family import Call
from . import denoiser
from .modulation import FrameModulation, Modulation

FEEDS = {"condition": "condition"}
"""The output of the VAE's encoder, and the input of the denoiser that it feeds."""

GIVEN = "given"
"""The input of the denoiser that says which latent frames the condition is."""


class FirstFrameStep(denoiser.DenoiserStep):
    """The `denoiser` graph of a model whose latent frames each have a timestep.

    A frame that is given is the condition, in what the network sees and in what the step leaves, at the timestep 0.
    The reference has a timestep for each token; here modulation has a row for each frame, which gives the same and is
    smaller by the tokens of a frame: for 704x1280x121 2 MB in place of 2 GB.

    Raises:
        ValueError: the transformer is not plain text-to-video, or its patches have several frames.
    """

    def __init__(self, transformer: WanTransformer3DModel, network_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(transformer, network_dtype)
        names = [name for name, _, _ in symbolic_inputs(transformer)]
        self.forward = named(self.run, names)  # type: ignore[method-assign]  # it has further inputs
        if self.patch_size[0] != 1:
            raise ValueError(
                f"patch_size of the transformer is {self.patch_size}; a timestep for each latent frame needs patches "
                "of one frame. Export the checkpoint of Wan 2.2 TI2V 5B, whose patches are (1, 2, 2)"
            )

    def run(self, latents: Tensor, state: Tensor, timestep: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """All of `symbolic_inputs` in their order. Returns what `DenoiserStep` returns.

        Given frames are replaced in all rows of the state: only the first is read again, as the latents.
        """
        *others, condition, given = inputs
        is_given = given[:, None, None] > 0
        seen = torch.where(is_given, condition, latents)
        next_state, peak = super().forward(seen, state, timestep * (1 - given), *others)
        return torch.where(is_given, condition, next_state), peak

    def _modulation(self, timestep: Tensor, branches: int, grid: tuple[int, ...]) -> Modulation:
        f, y, x = grid
        return FrameModulation(*self._embed_time(timestep), rows=(branches, f, y * x))


def symbolic_inputs(transformer: WanTransformer3DModel) -> list[SymbolicValue]:
    """Those of every denoiser, the latent of the first frame, and 1 for each latent frame that it is, 0 for others."""
    return [
        *denoiser.symbolic_inputs(transformer),
        (FEEDS["condition"], "float32", (transformer.config.in_channels, 1, "h", "w")),
        (GIVEN, "float32", ("F",)),
    ]


def example_inputs(
    transformer: WanTransformer3DModel, sizes: Mapping[str, int] = denoiser.EXAMPLE_SIZES, seed: int = 0
) -> dict[str, Tensor]:
    """As `denoiser.example_inputs`; the first frame is given where the seed is even."""
    generator = torch.Generator().manual_seed(seed + 1)
    shape = (transformer.config.in_channels, 1, sizes["h"], sizes["w"])
    return denoiser.example_inputs(transformer, sizes, seed) | {
        FEEDS["condition"]: torch.randn(shape, generator=generator),
        GIVEN: (torch.arange(sizes["F"]) < (seed + 1) % 2).float(),
    }


def recorded_inputs(call: Call) -> dict[str, Tensor]:
    """As `denoiser.recorded_inputs`; the first frame is given where each token has a timestep."""
    latents, timestep = call["hidden_states"][0], call["timestep"]
    is_given = float(timestep.ndim == 2)
    return {
        "latents": latents,
        "timestep": timestep.max().reshape(1),
        FEEDS["condition"]: is_given * latents[:, :1],
        GIVEN: is_given * (torch.arange(latents.shape[1]) == 0),
    }
