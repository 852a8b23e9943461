"""The preview map against a decoder that is linear, and against a VAE's own pictures."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mutoscope.preview import latents_to_rgb
from mutoscope_export.checkpoint import open_checkpoint
from mutoscope_export.preview import fit_preview
from torch import Tensor


def test_a_linear_decoder_is_recovered_exactly() -> None:
    weights = torch.tensor([[9.0, -4.0, 2.0], [0.0, 7.0, -11.0]])
    bias = torch.tensor([100.0, 120.0, 140.0])

    def decode(latents: Tensor) -> Iterator[Tensor]:
        for index in range(latents.shape[1]):
            rgb = torch.einsum("chw,cr->hwr", latents[:, index], weights) + bias
            yield rgb.repeat_interleave(2, 0).repeat_interleave(2, 1).expand(4, -1, -1, -1)

    preview = fit_preview(decode, 2)
    np.testing.assert_allclose(preview.weights, weights, atol=1e-3)
    np.testing.assert_allclose(preview.bias, bias, atol=1e-3)


@pytest.mark.parametrize("seed", [5, 6])
def test_for_unseen_latents_the_preview_is_closer_to_the_video_than_its_mean_colour(
    wan_checkpoint: Path, seed: int
) -> None:
    opened = open_checkpoint(wan_checkpoint)
    vae = opened.load("vae")
    preview = fit_preview(lambda latents: opened.family.decode(vae, latents), 4)
    coarse = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    latents = torch.nn.functional.interpolate(coarse, size=(2, 8, 8), mode="trilinear")[0]
    statistics = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_std", "latents_mean"))
    std, mean = statistics
    with torch.no_grad():
        video = vae.decode(latents[None] * std + mean).sample[0] * 127.5 + 127.5
    # The first latent frame is one frame, the second four; a latent pixel is 8 by 8.
    clips = video[:, :1].mean(1), video[:, 1:].mean(1)
    colours = torch.stack([torch.nn.functional.avg_pool2d(clip, 8).permute(1, 2, 0) for clip in clips]).numpy()
    shown = latents_to_rgb(latents.numpy(), preview)
    assert shown is not None and shown.shape == colours.shape
    error = np.square(shown - colours).mean()
    assert error < 0.7 * np.square(colours - colours.mean((0, 1, 2))).mean()
