"""WebP, animated where there are several frames: finer and smaller than a GIF, for browsers."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from ..provenance.tag import xmp
from .encoders import ENCODERS, check_encoder, encoder_options, numbered_frames, open_container
from .frames import Frames, VideoHeader

XMP_FLAG = 0x04


def write(target: Path, frames: Iterator[Frames], header: VideoHeader, codec: str) -> None:
    """Loops for ever."""
    check_encoder(codec)
    import av
    from av.video.reformatter import VideoReformatter

    with open_container(target, "webp", loop="0") as output:
        stream = output.add_stream(ENCODERS[codec].name, rate=header.fps, options=encoder_options(codec))
        assert isinstance(stream, av.VideoStream)
        # RGB: libwebp itself converts, as the format wants it.
        stream.width, stream.height, stream.pix_fmt = header.width, header.height, "bgra"
        reformatter = VideoReformatter()
        for frame in numbered_frames(frames, header.fps):
            output.mux(stream.encode(reformatter.reformat(frame, format="bgra")))
        output.mux(stream.encode(None))
    _add_xmp(target, header)


def _add_xmp(target: Path, header: VideoHeader) -> None:
    """FFmpeg's muxer writes no text, so what is said of the video is added here.

    The chunk is the last one, and announced in the first, VP8X, which a single picture lacks: RFC 9649, section 2.7.
    """
    content = xmp(header.title, header.recipe, has_footage=header.has_footage)
    chunk = struct.pack("<4sI", b"XMP ", len(content)) + content + bytes(len(content) % 2)
    with target.open("rb+") as file:
        head = file.read(21)
        if head[12:16] == b"VP8X":
            file.seek(20)
            file.write(bytes([head[20] | XMP_FLAG]))
        else:
            file.seek(12)
            rest = file.read()
            size = (header.width - 1).to_bytes(3, "little") + (header.height - 1).to_bytes(3, "little")
            file.seek(12)
            file.write(struct.pack("<4sI", b"VP8X", 10) + bytes([XMP_FLAG, 0, 0, 0]) + size + rest)
        file.seek(0, 2)
        file.write(chunk)
        length = file.tell()
        file.seek(4)
        file.write(struct.pack("<I", length - 8))
