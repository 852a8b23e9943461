"""Fits the linear map from latents to RGB that shows a video while it is being denoised.

Knows least squares. Knows nothing of decoders but that they turn latents into frames.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from mutoscope.bundle.bundle import Preview
from torch import Tensor

Decode = Callable[[Tensor], Iterable[Tensor]]

_CLIPS, _FRAMES, _SIZE = 6, 3, 12


def fit_preview(decode: Decode, latent_channels: int, *, seed: int = 0) -> Preview:
    """The map that comes closest, in the mean square, to the colour a latent pixel decodes to.

    Args:
        decode: latents f32 `[C, F, h, w]`, normalised as the denoiser leaves them, to u8 frames `[T, H, W, 3]` for each
            latent frame.
        latent_channels: C.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, colours = [], []
    with torch.no_grad():
        for clip in range(_CLIPS):
            latents = _smooth_latents(latent_channels, 2 + clip % 3, generator)
            for index, frames in enumerate(decode(latents)):
                rows.append(latents[:, index].flatten(1).T)
                colours.append(_mean_colours(frames))
    design = torch.cat(rows).double()
    design = torch.cat([design, torch.ones(len(design), 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(design, torch.cat(colours).double()).solution
    # Rounded, because the last bits of a solution depend on where in memory its input lies.
    *weights, bias = ((round(red, 3), round(green, 3), round(blue, 3)) for red, green, blue in solution.tolist())
    return Preview(weights=tuple(weights), bias=bias)


def _smooth_latents(channels: int, knots: int, generator: torch.Generator) -> Tensor:
    """A clip `[C, F, h, w]` of soft patches with a standard deviation of 1; the fewer knots, the larger the patches."""
    coarse = torch.randn(1, channels, _FRAMES, knots, knots, generator=generator)
    smooth = F.interpolate(coarse, size=(_FRAMES, _SIZE, _SIZE), mode="trilinear", align_corners=True)[0]
    return smooth / smooth.std()


def _mean_colours(frames: Tensor) -> Tensor:
    """Frames u8 `[T, H, W, 3]` to the mean RGB of each latent pixel `[h * w, 3]`, in 0..255."""
    pooled = F.adaptive_avg_pool2d(frames.float().mean(0).permute(2, 0, 1), _SIZE)
    return pooled.flatten(1).T
