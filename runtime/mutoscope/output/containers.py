"""MP4, QuickTime, Matroska and WebM: 8-bit 4:2:0 video in BT.709. Knows what their players expect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from ..planning.plan import Plan
from .encoders import ENCODERS, check_encoder, encoder_options, numbered_frames, open_container
from .recipe import recipe

# More give nothing at the sizes of these models, and libvpx refuses more than 64.
MAX_THREADS = 16


def write_mp4(target: Path, frames: Iterator[NDArray[np.uint8]], plan: Plan, codec: str) -> None:
    """The index comes first, so that a browser plays while it loads."""
    _write(target, frames, plan, codec, "mp4", movflags="+faststart")


def write_mov(target: Path, frames: Iterator[NDArray[np.uint8]], plan: Plan, codec: str) -> None:
    """For editors, which take QuickTime's files; the same streams as in an MP4."""
    _write(target, frames, plan, codec, "mov", movflags="+faststart")


def write_mkv(target: Path, frames: Iterator[NDArray[np.uint8]], plan: Plan, codec: str) -> None:
    _write(target, frames, plan, codec, "matroska")


def write_webm(target: Path, frames: Iterator[NDArray[np.uint8]], plan: Plan, codec: str) -> None:
    _write(target, frames, plan, codec, "webm")


def _write(
    target: Path, frames: Iterator[NDArray[np.uint8]], plan: Plan, codec: str, container: str, **options: str
) -> None:
    if plan.height % 2 or plan.width % 2:
        raise OutputError(
            f"{codec} needs an even height and width; the video has {plan.height}x{plan.width}. "
            "Write .webp, .gif, .npy or a folder of PNGs"
        )
    check_encoder(codec)
    import av
    from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter

    scaling = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
    with open_container(target, container, **options) as output:
        output.metadata.update({"title": plan.prompt, "comment": recipe(plan)})
        stream = output.add_stream(ENCODERS[codec].name, rate=plan.fps, options=encoder_options(codec))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = plan.width, plan.height, "yuv420p"
        context = stream.codec_context
        context.thread_count = min(plan.threads, MAX_THREADS)
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        reformatter = VideoReformatter()  # one for all frames: making it takes as long as using it
        for frame in numbered_frames(frames, plan.fps):
            converted = reformatter.reformat(
                frame,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=scaling,
            )
            output.mux(stream.encode(converted))
        output.mux(stream.encode(None))
