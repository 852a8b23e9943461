"""Moving pictures like photographs, in any size: noise whose strength falls off with its frequency, as theirs does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks import watermark_robustness

Frames = NDArray[np.uint8]


def landscape(num_frames: int = 5, height: int = 256, width: int = 320, seed: int = 0) -> Frames:
    """A window that moves over a picture, 2 pixels a frame."""
    random = np.random.default_rng(seed)
    rows, columns = height + num_frames, width + 2 * num_frames
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns))
    frequency[0, 0] = 1
    planes = []
    for _ in range(3):
        spectrum = np.fft.fft2(random.standard_normal((rows, columns))) / frequency
        plane = np.fft.ifft2(spectrum).real
        planes.append((plane - plane.mean()) / plane.std())
    colours = np.stack([planes[0] + 0.3 * plane for plane in planes], axis=-1)
    pixels = np.clip(128 + 45 * colours, 0, 255).astype(np.uint8)
    return np.stack([pixels[n : n + height, 2 * n : 2 * n + width] for n in range(num_frames)])


def encoded(frames: Frames, size: tuple[int, int] | None = None, **options: str) -> Frames:
    """The frames after x264 and back, scaled to `(height, width)` before it."""
    height, width = size or frames.shape[1:3]
    return watermark_robustness.encoded(frames, "libx264", options, (height, width))
