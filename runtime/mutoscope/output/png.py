"""PNG, exact: one picture, or a folder of them with the recipe beside them as `plan.json`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from ..errors import OutputError
from ..provenance.tag import tag, xmp
from .encoders import ENCODERS, check_encoder, numbered_frames
from .frames import Frames, VideoHeader


def write_folder(target: Path, frames: Iterator[Frames], header: VideoHeader, codec: str) -> None:
    """`frame_00000.png` and so on."""
    check_encoder(codec)
    target.mkdir()
    for number, content in enumerate(_encoded(frames, header)):
        (target / f"frame_{number:05d}.png").write_bytes(_with_texts(content, replace(header, recipe="")))
    if header.recipe:
        (target / "plan.json").write_text(header.recipe + "\n", encoding="ascii", newline="\n")


def write_picture(target: Path, frames: Iterator[Frames], header: VideoHeader, codec: str) -> None:
    """The only frame of a video, with the recipe as its "Comment"."""
    if header.num_frames != 1:
        raise OutputError(
            f"a .png holds one frame, and the video has {header.num_frames}; ask for num_frames=1, or name a folder "
            "for PNGs: the same name without .png"
        )
    check_encoder(codec)
    for content in _encoded(frames, header):
        target.write_bytes(_with_texts(content, header))


def _encoded(frames: Iterator[Frames], header: VideoHeader) -> Iterator[bytes]:
    """A whole PNG for each frame."""
    import av

    context = av.CodecContext.create(ENCODERS["png"].name, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = header.width, header.height, "rgb24"
    context.time_base = 1 / header.fps
    for frame in chain(numbered_frames(frames, header.fps), [None]):
        yield from map(bytes, context.encode(frame))


def _with_texts(content: bytes, header: VideoHeader) -> bytes:
    """Puts text chunks after the first one, IHDR, which ends at byte 33 (PNG, sections 5.2, 5.3 and 11.3.3)."""
    texts = [("Description", tag(has_footage=header.has_footage))]
    texts += [("Comment", header.recipe)] if header.recipe else []
    chunks = [_chunk(b"tEXt", name.encode("ascii") + b"\0" + text.encode("ascii")) for name, text in texts]
    chunks += [_chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + xmp(has_footage=header.has_footage))]
    return content[:33] + b"".join(chunks) + content[33:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
