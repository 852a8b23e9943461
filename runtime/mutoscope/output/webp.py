"""WebP, animated where there are several frames: finer and smaller than a GIF, for browsers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..planning.plan import Plan
from .encoders import ENCODERS, check_encoder, encoder_options, numbered_frames, open_container


def write(target: Path, frames: Iterator[NDArray[np.uint8]], plan: Plan, codec: str) -> None:
    """Loops for ever. FFmpeg's muxer writes no text, so the plan is not in it."""
    check_encoder(codec)
    import av
    from av.video.reformatter import VideoReformatter

    with open_container(target, "webp", loop="0") as output:
        stream = output.add_stream(ENCODERS[codec].name, rate=plan.fps, options=encoder_options(codec))
        assert isinstance(stream, av.VideoStream)
        # RGB: libwebp itself converts, as the format wants it.
        stream.width, stream.height, stream.pix_fmt = plan.width, plan.height, "bgra"
        reformatter = VideoReformatter()
        for frame in numbered_frames(frames, plan.fps):
            output.mux(stream.encode(reformatter.reformat(frame, format="bgra")))
        output.mux(stream.encode(None))
