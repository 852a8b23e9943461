"""A folder of PNGs, exact, with the plan beside them as `plan.json`."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..plan import Plan
from .encoders import ENCODERS, check_encoder, numbered_frames
from .recipe import recipe


def write(target: Path, frames: Iterator[NDArray[np.uint8]], plan: Plan, codec: str) -> None:
    """`frame_00000.png` and so on."""
    check_encoder(codec)
    import av

    target.mkdir()
    context = av.CodecContext.create(ENCODERS["png"].name, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = plan.width, plan.height, "rgb24"
    context.time_base = Fraction(1, plan.fps)
    numbers = count()
    for frame in chain(numbered_frames(frames, plan.fps), [None]):
        for packet in context.encode(frame):  # a packet is a whole PNG
            (target / f"frame_{next(numbers):05d}.png").write_bytes(bytes(packet))
    (target / "plan.json").write_text(recipe(plan) + "\n", encoding="ascii", newline="\n")
