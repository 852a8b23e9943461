"""Short clips, their headers, and what a folder and a picture file hold, for tests of what writes them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from mutoscope.output.frames import VideoHeader
from numpy.typing import NDArray
from PIL import Image

T, H, W = 9, 32, 48
Frames = NDArray[np.uint8]

# One of each format.
FILES = ["out.mp4", "out.mov", "out.mkv", "out.webm", "out.gif", "out.webp", "out.npy", "frames"]


def make_header(num_frames: int = T, height: int = H, width: int = W, fps: Fraction | int | str = 16) -> VideoHeader:
    return VideoHeader(
        height=height,
        width=width,
        num_frames=num_frames,
        fps=Fraction(fps),
        title='a "red" circle, über alles',
        recipe=json.dumps({"mutoscope": "1", "prompt": 'a "red" circle, über alles', "seed": 7}),
    )


def scene(num_frames: int = T, height: int = H, width: int = W) -> Frames:
    """A red block, 16 wide, that moves 2 pixels a frame over a gradient of blue to teal."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    frames[..., 1] = np.linspace(60, 140, height).astype(np.uint8)[:, None]
    frames[..., 2] = 140
    for index, frame in enumerate(frames):
        frame[8:24, 2 * index : 2 * index + 16] = (220, 30, 25)
    return frames


def chunked(frames: Frames) -> Iterator[Frames]:
    yield frames[:1]
    for start in range(1, len(frames), 4):
        yield frames[start : start + 4]


def pillow_frames(path: Path) -> Frames:
    with Image.open(path) as image:
        frames = []
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
    return np.stack(frames)


def leftovers(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))
