"""PNG, exact: one picture, or a folder of them with the plan beside them as `plan.json`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from ..planning.plan import Plan
from .encoders import ENCODERS, check_encoder, numbered_frames
from .recipe import recipe


def write_folder(target: Path, frames: Iterator[NDArray[np.uint8]], plan: Plan, codec: str) -> None:
    """`frame_00000.png` and so on."""
    check_encoder(codec)
    target.mkdir()
    for number, content in enumerate(_encoded(frames, plan)):
        (target / f"frame_{number:05d}.png").write_bytes(content)
    (target / "plan.json").write_text(recipe(plan) + "\n", encoding="ascii", newline="\n")


def write_picture(target: Path, frames: Iterator[NDArray[np.uint8]], plan: Plan, codec: str) -> None:
    """The only frame of a video, with the plan as its "Comment"."""
    if plan.num_frames != 1:
        raise OutputError(
            f"a .png holds one frame, and the video has {plan.num_frames}; ask for num_frames 1, or name a folder for "
            "PNGs: the same name without .png"
        )
    check_encoder(codec)
    for content in _encoded(frames, plan):
        target.write_bytes(_with_comment(content, recipe(plan)))


def _encoded(frames: Iterator[NDArray[np.uint8]], plan: Plan) -> Iterator[bytes]:
    """A whole PNG for each frame."""
    import av

    context = av.CodecContext.create(ENCODERS["png"].name, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = plan.width, plan.height, "rgb24"
    context.time_base = 1 / plan.fps
    for frame in chain(numbered_frames(frames, plan.fps), [None]):
        yield from map(bytes, context.encode(frame))


def _with_comment(content: bytes, text: str) -> bytes:
    """Puts a text chunk after the first one, IHDR, which ends at byte 33 (PNG, sections 5.2, 5.3 and 11.3.3)."""
    data = b"tEXtComment\0" + text.encode("ascii")
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return content[:33] + chunk + content[33:]
