"""One denoising step of Wan's image-to-video models, which are given a latent for each latent frame of the video.

Knows what `WanImageToVideoPipeline` puts beside the noise where it has no `expand_timesteps`. Knows nothing of pictures
or of the VAE.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from ...graphs.trace import SymbolicValue, named
from ..family import Call
from . import denoiser

FEEDS = {"condition": "condition"}
"""The output of the VAE's encoder, and the input of the denoiser that it feeds."""

GIVEN = "given"
"""The input of the denoiser that says which frames of the condition are pictures."""

_OF_IMAGES = ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len")


class ClipStep(denoiser.DenoiserStep):
    """The `denoiser` graph of a model that takes three things side by side as channels: the noisy latents, which frames
    are given, and the latents of a clip that is grey where none is.

    Raises:
        ValueError: the transformer is not that of Wan 2.2 I2V-A14B, but for its size.
    """

    def __init__(self, transformer: WanTransformer3DModel, network_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(transformer, network_dtype)
        names = [name for name, _, _ in symbolic_inputs(transformer)]
        self.forward = named(self.run, names)  # type: ignore[method-assign]  # it has further inputs

    def run(self, latents: Tensor, state: Tensor, timestep: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """All of `symbolic_inputs` in their order. Returns what `DenoiserStep` returns."""
        *others, condition, given = inputs
        return super().forward(beside(latents, condition, given), state, timestep, *others)

    @staticmethod
    def refuse_unsupported(config: Any) -> None:
        given = {name: getattr(config, name) for name in _OF_IMAGES if getattr(config, name) is not None}
        if given:
            raise ValueError(
                f"config of a transformer has {given}; in image-to-video models without an image encoder, such as Wan "
                f"2.2 I2V-A14B, {', '.join(_OF_IMAGES)} are null. Get the checkpoint again"
            )
        refuse_other_channels(config)


def beside(latents: Tensor, condition: Tensor, given: Tensor) -> Tensor:
    """What the network takes, `[in_channels,F,h,w]`."""
    mask = given[:, :, None, None].expand(-1, -1, *latents.shape[2:])
    return torch.cat([latents, mask, condition])


def refuse_other_channels(config: Any) -> None:
    """
    Raises:
        ValueError: a transformer with this configuration has no channels for the latents of a clip and its mask.
    """
    if mask_channels(config) < 1:
        raise ValueError(
            f"in_channels of the transformer is {config.in_channels}, out_channels {config.out_channels}; supported in "
            "image-to-video checkpoints is twice out_channels and one more for each frame that a latent frame stands "
            "for, such as 36 and 16"
        )


def mask_channels(config: Any) -> int:
    """How many frames a latent frame stands for: each has a channel that says whether it is given."""
    return int(config.in_channels - 2 * (config.out_channels or config.in_channels))


def symbolic_inputs(transformer: WanTransformer3DModel) -> list[SymbolicValue]:
    """Those of every denoiser, the latents of the clip, and 1 for each of its frames that is given, 0 for others."""
    return [
        *denoiser.symbolic_inputs(transformer),
        (FEEDS["condition"], "float32", (denoiser.latent_channels(transformer), "F", "h", "w")),
        (GIVEN, "float32", (mask_channels(transformer.config), "F")),
    ]


def example_inputs(
    transformer: WanTransformer3DModel, sizes: Mapping[str, int] = denoiser.EXAMPLE_SIZES, seed: int = 0
) -> dict[str, Tensor]:
    """As `denoiser.example_inputs`; the first frame is given, and where the seed is odd the last, too."""
    generator = torch.Generator().manual_seed(seed + 1)
    shape = (denoiser.latent_channels(transformer), sizes["F"], sizes["h"], sizes["w"])
    given = torch.zeros(mask_channels(transformer.config), sizes["F"])
    given[:, 0], given[-1, -1] = 1, seed % 2
    return denoiser.example_inputs(transformer, sizes, seed) | {
        FEEDS["condition"]: torch.randn(shape, generator=generator),
        GIVEN: given,
    }


def recorded_inputs(call: Call, channels: int) -> dict[str, Tensor]:
    """As `denoiser.recorded_inputs`, of latents with so many channels: the reverse of `beside`."""
    seen = call["hidden_states"][0]
    return {
        "latents": seen[:channels],
        "timestep": call["timestep"][:1],
        FEEDS["condition"]: seen[-channels:],
        GIVEN: seen[channels:-channels, :, 0, 0],
    }
