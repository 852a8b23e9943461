"""Moving pictures like photographs, in any size: noise whose strength falls off with its frequency, as theirs does."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

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


def encoded(frames: Frames, codec: str = "libx264", size: tuple[int, int] | None = None, **options: str) -> Frames:
    """The frames after an encoder of FFmpeg and back, scaled to `(height, width)` before it."""
    file = io.BytesIO()
    height, width = size or frames.shape[1:3]
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream(codec, rate=16, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(width, height, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 16)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as source:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)])
