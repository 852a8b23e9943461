"""The clips that the videos of a calibration follow: those that were given, or drawn ones.

Knows pictures, clips and resizing. Knows nothing of what a model does with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
from mutoscope.clips import Clip, identity_of
from mutoscope.pictures import Picture, Pixels, fitted
from numpy.typing import NDArray

ClipPixels = NDArray[np.uint8]  # [T, H, W, 3]


def frames_of(clip: Clip | Picture, num_frames: int, height: int, width: int) -> ClipPixels:
    """The first frames of a clip, resized as Diffusers does. A picture stands still, and so does the last frame of a
    clip that is shorter.

    Raises:
        RequestError: the clip cannot be read.
    """
    found: Iterable[Pixels] = [clip.pixels] if isinstance(clip, Picture) else islice(clip.frames(), num_frames)
    shown = np.stack([fitted(frame, height, width) for frame in found])
    return np.pad(shown, ((0, num_frames - len(shown)), (0, 0), (0, 0), (0, 0)), mode="edge")


def identity(clip: Clip | Picture, num_frames: int) -> str:
    """What tells a clip from others, by as many of its frames as a video follows."""
    return clip.identity if isinstance(clip, Picture) else identity_of(islice(clip.frames(), num_frames))


def drawn(number: int, num_frames: int, height: int, width: int) -> ClipPixels:
    """A clip that has some of what footage has: detail of every size, weaker the finer it is, over which the view
    moves, and before it a disc with a sharp edge that moves the other way. Light and colours differ by `number`.
    """
    rng = np.random.default_rng(number)
    landscape = rng.uniform(70, 180) + rng.uniform(25, 70) * _texture(rng, height, width)
    colour, radius = rng.uniform(0, 255, 3), rng.uniform(0.1, 0.3) * min(height, width)
    rows, columns = np.mgrid[:height, :width]
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for index, place in enumerate(np.linspace(0.25, 0.75, num_frames)):
        frame = np.roll(landscape, (round(height * place / 2), round(width * place / 2)), (0, 1))
        disc = np.hypot(rows - height * place, columns - width * (1 - place)) < radius
        frames[index] = np.where(disc[..., None], colour, frame).clip(0, 255).round()
    return frames


def _texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """`[H, W, 3]` of mean 0 and deviation 1, mostly grey, whose spectrum falls as that of photographs does."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    waves = rng.normal(size=(4, *frequency.shape)) + 1j * rng.normal(size=(4, *frequency.shape))
    grey, *colours = np.fft.irfft2(waves / np.maximum(frequency, 1 / max(height, width)), (height, width))
    mixed = np.stack([2 * grey + colour for colour in colours], axis=-1)
    texture: NDArray[np.float64] = (mixed - mixed.mean((0, 1))) / np.maximum(mixed.std((0, 1)), 1e-9)
    return texture
