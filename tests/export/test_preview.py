"""The preview map against a decoder that is linear, and what it is fitted to against Diffusers' VAE.

How good a linear map is cannot be asked of a VAE with random weights, whose colours follow no such map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers.video_processor import VideoProcessor
from mutoscope_export.families.decoding import decode
from mutoscope_export.opening import open_checkpoint
from mutoscope_export.preview import fit_preview
from torch import Tensor


def test_a_linear_decoder_is_recovered_exactly() -> None:
    weights = torch.tensor([[9.0, -4.0, 2.0], [0.0, 7.0, -11.0]])
    bias = torch.tensor([100.0, 120.0, 140.0])

    def decode(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        for chunk in chunks:
            rgb = torch.einsum("chw,cr->hwr", chunk[0, :, 0], weights) + bias
            yield rgb.repeat_interleave(2, 0).repeat_interleave(2, 1).expand(4, -1, -1, -1)

    preview = fit_preview(decode, 2)
    np.testing.assert_allclose(preview.weights, weights, atol=1e-3)
    np.testing.assert_allclose(preview.bias, bias, atol=1e-3)


def test_the_frames_it_is_fitted_to_are_those_of_diffusers_and_latents_are_normalised(wan_checkpoint: Path) -> None:
    opened = open_checkpoint(wan_checkpoint)
    vae, sources = opened.load("vae"), opened.family.sources(opened, ["fp32"])
    latents = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(5))
    std, mean = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_std", "latents_mean"))
    with torch.no_grad():
        frames = torch.cat(list(decode(sources, vae, latents[None].split(1, dim=2))))
        video = vae.decode(latents[None] * std + mean).sample
    expected = 255 * VideoProcessor().postprocess_video(video, output_type="np")[0]
    assert frames.shape == expected.shape == (9, 40, 48, 3)
    assert np.abs(frames.numpy() - expected).max() < 0.51
    assert expected.std() > 10


def test_the_same_checkpoint_gives_the_same_map(wan_checkpoint: Path) -> None:
    opened = open_checkpoint(wan_checkpoint)
    vae, sources = opened.load("vae"), opened.family.sources(opened, ["fp32"])

    def decoded(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        return decode(sources, vae, chunks)

    assert fit_preview(decoded, 4) == fit_preview(decoded, 4)
