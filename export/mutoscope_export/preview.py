"""Fits the linear map from latents to RGB that shows a video while it is being denoised.

Knows least squares. Knows nothing of decoders but that they turn latents into frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from mutoscope.bundle.manifest import Preview
from torch import Tensor

Decode = Callable[[Iterable[Tensor]], Iterable[Tensor]]
"""Latents f32 `[1, C, n, h, w]` of each call, as the denoiser leaves them, to its u8 frames `[T, H, W, 3]`."""

_CLIPS, _CALLS, _SIZE = 6, 3, 12


def fit_preview(
    decode: Decode, latent_channels: int, latents_per_call: tuple[int, int] = (1, 1), *, seed: int = 0
) -> Preview:
    """The map that comes closest, in the mean square, to the colour a latent pixel decodes to.

    Args:
        latent_channels: C.
        latents_per_call: the latent frames n of the decoder's first call, and of every other.
    """
    first, following = latents_per_call
    sizes = [first, *[following] * (_CALLS - 1)]
    generator = torch.Generator().manual_seed(seed)
    rows, colours = [], []
    with torch.no_grad():
        for clip in range(_CLIPS):
            chunks = _smooth_latents(latent_channels, sum(sizes), 2 + clip % 3, generator)[None].split(sizes, dim=2)
            for chunk, frames in zip(chunks, decode(chunks), strict=True):
                rows.append(chunk[0].mean(1).flatten(1).T)
                colours.append(_mean_colours(frames))
    design = torch.cat(rows).double()
    design = torch.cat([design, torch.ones(len(design), 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(design, torch.cat(colours).double()).solution
    # Rounded, because the last bits of a solution depend on where in memory its input lies.
    *weights, bias = ((round(red, 3), round(green, 3), round(blue, 3)) for red, green, blue in solution.tolist())
    return Preview(weights=tuple(weights), bias=bias)


def _smooth_latents(channels: int, frames: int, knots: int, generator: torch.Generator) -> Tensor:
    """A clip `[C, F, h, w]` of soft patches with a standard deviation of 1; the fewer knots, the larger the patches."""
    coarse = torch.randn(1, channels, frames, knots, knots, generator=generator)
    smooth = F.interpolate(coarse, size=(frames, _SIZE, _SIZE), mode="trilinear", align_corners=True)[0]
    return smooth / smooth.std()


def _mean_colours(frames: Tensor) -> Tensor:
    """Frames u8 `[T, H, W, 3]` to the mean RGB of each latent pixel `[h * w, 3]`, in 0..255."""
    pooled = F.adaptive_avg_pool2d(frames.float().mean(0).permute(2, 0, 1), _SIZE)
    return pooled.flatten(1).T
