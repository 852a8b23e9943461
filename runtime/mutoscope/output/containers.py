"""MP4, QuickTime, Matroska and WebM: 8-bit 4:2:0 video in BT.709. Knows what their players expect."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from ..errors import OutputError
from ..provenance.tag import tag, xmp
from .encoders import ENCODERS, check_encoder, encoder_options, numbered_frames, open_container, threads_as_they_were
from .frames import Frames, VideoHeader

# More give nothing at the sizes of these models, and libvpx refuses more than 64.
MAX_THREADS = 16
# The box of an XMP packet: XMP Specification Part 3, "MPEG-4", the same in QuickTime files.
XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")


def write_mp4(target: Path, frames: Iterator[Frames], header: VideoHeader, codec: str) -> None:
    """The index comes first, so that a browser plays while it loads."""
    _write(target, frames, header, codec, "mp4", movflags="+faststart")
    _add_xmp_box(target, header)


def write_mov(target: Path, frames: Iterator[Frames], header: VideoHeader, codec: str) -> None:
    """For editors, which take QuickTime's files; the same streams as in an MP4."""
    _write(target, frames, header, codec, "mov", movflags="+faststart")
    _add_xmp_box(target, header)


def write_mkv(target: Path, frames: Iterator[Frames], header: VideoHeader, codec: str) -> None:
    """For archives: Matroska."""
    _write(target, frames, header, codec, "matroska")


def write_webm(target: Path, frames: Iterator[Frames], header: VideoHeader, codec: str) -> None:
    """For the web: WebM, in which players expect VP9 or AV1."""
    _write(target, frames, header, codec, "webm")


def _write(
    target: Path, frames: Iterator[Frames], header: VideoHeader, codec: str, container: str, **options: str
) -> None:
    if header.height % 2 or header.width % 2:
        raise OutputError(
            f"{codec} needs an even height and width; the video has {header.height}x{header.width}. "
            "Write .webp, .gif, .npy or a folder of PNGs"
        )
    check_encoder(codec)
    import av
    from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter

    scaling = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
    with open_container(target, container, **options) as output:
        said_in = "genre" if container == "mov" else "description"  # FFmpeg writes no description into QuickTime
        texts = {"title": header.title, "comment": header.recipe, said_in: tag(has_footage=header.has_footage)}
        output.metadata.update({name: text for name, text in texts.items() if text})
        stream = output.add_stream(ENCODERS[codec].name, rate=header.fps, options=encoder_options(codec))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = header.width, header.height, "yuv420p"
        context = stream.codec_context
        context.thread_count = min(header.threads, MAX_THREADS)
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        with threads_as_they_were():
            context.open(strict=False)
        reformatter = VideoReformatter()  # one for all frames: making it takes as long as using it
        for frame in numbered_frames(frames, header.fps):
            converted = reformatter.reformat(
                frame,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=scaling,
            )
            output.mux(stream.encode(converted))
        output.mux(stream.encode(None))


def _add_xmp_box(target: Path, header: VideoHeader) -> None:
    """At the end, where no offset of another box changes."""
    content = b"uuid" + XMP_BOX + xmp(has_footage=header.has_footage)
    with target.open("ab") as file:
        file.write(struct.pack(">I", len(content) + 4) + content)
