"""WebP, animated where there are several frames: finer and smaller than a GIF, for browsers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .encoders import ENCODERS, check_encoder, encoder_options, numbered_frames, open_container
from .frames import Frames, VideoHeader


def write(target: Path, frames: Iterator[Frames], header: VideoHeader, codec: str) -> None:
    """Loops for ever. FFmpeg's muxer writes no text, so the recipe is not in it."""
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
