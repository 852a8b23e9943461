"""Short clips, their plans, and what a folder and a picture file hold, for tests of what writes them."""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from mutoscope.planning.plan import Plan
from numpy.typing import NDArray
from PIL import Image

T, H, W = 9, 32, 48
Frames = NDArray[np.uint8]


def make_plan(num_frames: int = T, height: int = H, width: int = W, fps: Fraction | int | str = 16) -> Plan:
    return Plan(
        prompt='a "red" circle, über alles',
        negative_prompt="",
        prompt_tokens=3,
        max_sequence_length=8,
        height=height,
        width=width,
        num_frames=num_frames,
        fps=Fraction(fps),
        latents_shape=(4, 3, 4, 6),
        network_tokens=18,
        state_rows=1,
        num_inference_steps=2,
        cache_interval=1,
        scheduler="euler",
        flow_shift=3.0,
        sigmas=(),
        timesteps=(999.0, 500.0),
        guidance_scale=1.0,
        guidance_weights=(1.0,),
        branches_per_call=1,
        decoder_window=(4, 6),
        decoder_tiles=1,
        seed=7,
        backend="none",
        precision="fp32",
        stages={},
        threads=1,
        family="wan",
        bundle="/home/someone/bundle",
        bundle_sha256="ab" * 32,
        settings={},
        memory_limit_bytes=10**9,
        memory_peak_bytes=10**6,
        memory={},
        keep_loaded=True,
        notes=(),
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
