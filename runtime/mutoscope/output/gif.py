"""GIF with one palette for the whole clip.

The palette can only be made when every frame was seen, and no frame can be written before: the frames wait in a
nameless temporary file, so that memory does not grow with them. The dither is an ordered one: its pattern stands still,
where error diffusion crawls from frame to frame and makes files larger.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np

from ..errors import OutputError
from ..provenance.tag import tag, xmp
from .encoders import ENCODERS, check_encoder, numbered_frames, open_container
from .frames import Frames, VideoHeader

if TYPE_CHECKING:
    import av

COUNTED_PIXELS = 128 * 128  # of a frame, at most
MAX_FPS = 50  # players show a delay below two hundredths of a second as ten


def write(target: Path, frames: Iterator[Frames], header: VideoHeader, codec: str) -> None:
    """A looping GIF89a."""
    if header.fps > MAX_FPS:
        raise OutputError(
            f"a GIF plays at most {MAX_FPS} frames per second; fps is {header.fps}. Lower it or write .mp4"
        )
    check_encoder(codec)
    with tempfile.TemporaryFile(dir=target.parent) as spool:
        palette = _palette(_spooled(frames, spool), header)
        spool.seek(0)
        _encode(target, _unspooled(spool, header), palette, header)
    texts = (tag(has_footage=header.has_footage), header.recipe)
    _add_extensions(target, [_xmp_extension(header), *(_comment(text) for text in texts if text)])


def _spooled(frames: Iterator[Frames], spool: IO[bytes]) -> Iterator[Frames]:
    for chunk in frames:
        spool.write(chunk.data)
        yield chunk


def _unspooled(spool: IO[bytes], header: VideoHeader) -> Iterator[Frames]:
    shape = (1, header.height, header.width, 3)
    while content := spool.read(header.height * header.width * 3):
        yield np.frombuffer(content, np.uint8).reshape(shape)


def _palette(frames: Iterator[Frames], header: VideoHeader) -> av.VideoFrame:
    """255 colours and the transparent one, as a frame of 16 by 16.

    FFmpeg's search slows down with the square of the number of colours: of a large frame, every n-th pixel counts.
    """
    import av

    every = math.ceil(math.sqrt(header.height * header.width / COUNTED_PIXELS))
    height, width = math.ceil(header.height / every), math.ceil(header.width / every)
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add("buffer", _buffer(width, height, "rgb24", header.fps)),
        graph.add("palettegen", "stats_mode=full"),
        graph.add("buffersink"),
    ).configure()
    sampled = (np.ascontiguousarray(chunk[:, ::every, ::every]) for chunk in frames)
    for frame in numbered_frames(sampled, header.fps):
        graph.vpush(frame)
    graph.vpush(None)
    return graph.vpull()


def _encode(target: Path, frames: Iterator[Frames], palette: av.VideoFrame, header: VideoHeader) -> None:
    import av

    graph = av.filter.Graph()
    source = graph.add("buffer", _buffer(header.width, header.height, "rgb24", header.fps))
    colours = graph.add("buffer", _buffer(palette.width, palette.height, palette.format.name, header.fps))
    mapped = graph.add("paletteuse", "dither=bayer:bayer_scale=4")
    sink = graph.add("buffersink")
    source.link_to(mapped, 0, 0)
    colours.link_to(mapped, 0, 1)
    mapped.link_to(sink)
    graph.configure()
    palette.pts, palette.time_base = 0, 1 / header.fps
    colours.push(palette)
    colours.push(None)

    with open_container(target, "gif") as output:
        stream = output.add_stream(ENCODERS["gif"].name, rate=header.fps)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = header.width, header.height, "pal8"
        for frame in chain(numbered_frames(frames, header.fps), [None]):
            source.push(frame)
            with suppress(av.error.BlockingIOError, av.error.EOFError):  # the graph has nothing more for now
                while True:
                    output.mux(stream.encode(cast("av.VideoFrame", sink.pull())))
        output.mux(stream.encode(None))


def _buffer(width: int, height: int, pixel_format: str, fps: Fraction) -> str:
    return f"video_size={width}x{height}:pix_fmt={pixel_format}:time_base={1 / fps}:pixel_aspect=1/1"


def _comment(text: str) -> bytes:
    """A comment extension (GIF89a, section 24), in blocks of at most 255 bytes."""
    content = text.encode("ascii")
    blocks = [content[start : start + 255] for start in range(0, len(content), 255)]
    return b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\x00"


def _xmp_extension(header: VideoHeader) -> bytes:
    """An application extension with XMP as it is, not in blocks (XMP Specification Part 3, "GIF 89a").

    A reader that knows only blocks takes each byte for the length of one; wherever it gets to in the bytes after the
    packet, they lead it to the end.
    """
    packet = xmp(has_footage=header.has_footage)
    return b"\x21\xff\x0bXMP DataXMP" + packet + b"\x01" + bytes(range(255, -1, -1)) + b"\x00"


def _add_extensions(target: Path, extensions: list[bytes]) -> None:
    """Puts them before the trailer, which is the last byte (GIF89a, section 27)."""
    with target.open("rb+") as file:
        file.seek(-1, 2)
        trailer = file.read(1)
        file.seek(-1, 2)
        file.write(b"".join(extensions) + trailer)
