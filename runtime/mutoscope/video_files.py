"""The frames of a video file, as FFmpeg decodes them. Knows nothing of how such files are written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import MutoscopeError

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer

# Of FFmpeg's formats, files of videos alone: others are lists of addresses to fetch, or take any text for a video.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,ivf,nut,mxf,yuv4mpegpipe"
_SEEKABLE = ("mov", "matroska")  # these list their key frames
_NO_FRAMES = "its video has no frames"


Check = Callable[[int, int], None]
"""Is told width and height before anything is decoded; the `MutoscopeError` that it raises is passed on."""


class VideoError(Exception):
    """A file has no frames to give: says why."""


@dataclass(frozen=True)
class Head:
    """What a file says of its first video stream, whose frames are turned as it says."""

    height: int
    width: int
    rate: Fraction | None  # frames per second of playback; `None` where the file says none
    has_sound: bool


def decoded_frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Each frame of the first video stream, uint8 `[H, W, 3]`.

    Raises:
        av.FFmpegError: FFmpeg cannot read or decode it.
        IndexError: it has no video stream.
    """
    import av

    with av.open(f"file:{path}") as container:  # a name may look like one of FFmpeg's protocols
        for frame in container.decode(container.streams.video[0]):
            yield _pixels(frame)


def last_frame(file: BinaryIO, check: Check) -> NDArray[np.uint8]:
    """The last frame of the first video stream, uint8 `[H, W, 3]`, turned as the file says. No other frame is kept.

    Args:
        file: open at its start.
        check: of the size.

    Raises:
        VideoError: the file has none, or cannot be read.
    """
    with _opened(file, check) as (container, stream):
        last = _last(container, stream)
        if last is None:
            raise VideoError(_NO_FRAMES)
        return _turned(last)


def head_of(file: BinaryIO, check: Check) -> Head:
    """What is known of a video before all of it is decoded; decodes its first frame.

    Args:
        file: open at its start.
        check: of the size.

    Raises:
        VideoError: the file has none, or cannot be read.
    """
    with _opened(file, check) as (container, stream):
        first = next(iter(container.decode(stream)), None)
        if first is None:
            raise VideoError(_NO_FRAMES)
        height, width, _ = _turned(first).shape
        return Head(height, width, stream.average_rate or None, bool(container.streams.audio))


def every_frame(file: BinaryIO, check: Check) -> Iterator[NDArray[np.uint8]]:
    """Each frame of the first video stream, uint8 `[H, W, 3]`, turned as the file says.

    Args:
        file: open at its start, until the last frame was taken.
        check: of the size.

    Raises:
        VideoError: the file has none, or cannot be read, or its frames change their size.
    """
    with _opened(file, check) as (container, stream):
        shape = None
        for decoded in container.decode(stream):
            frame = _turned(decoded)
            if shape not in (None, frame.shape):
                raise VideoError("its frames change their size")
            shape = frame.shape
            yield frame
        if shape is None:
            raise VideoError(_NO_FRAMES)


@contextmanager
def _opened(file: BinaryIO, check: Check) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A video file and its first video stream."""
    import av

    try:
        with av.open(file, "r", options={"format_whitelist": _FORMATS, "protocol_whitelist": ""}) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:
                raise VideoError("it has no video, or one of an unknown codec")
            check(stream.width, stream.height)
            _refuse_cut_off(file, stream)
            yield container, stream
    except (VideoError, MutoscopeError):
        raise
    except Exception as error:  # of damaged files, PyAV raises more than its own errors
        raise VideoError("FFmpeg knows no video in it, or it is damaged") from error


def _last(container: InputContainer, stream: VideoStream) -> VideoFrame | None:
    last = None
    if container.duration is not None and container.format.name.startswith(_SEEKABLE):
        container.seek(container.duration)
        for frame in container.decode(stream):
            if last is None and not frame.key_frame:
                break
            last = frame
        else:
            if last is not None:
                return last
        container.seek(0)
    for frame in container.decode(stream):
        last = frame
    return last


def _refuse_cut_off(file: BinaryIO, stream: VideoStream) -> None:
    """FFmpeg gives the frames that are there."""
    entries = stream.index_entries
    here = file.tell()
    if len(entries) and entries[-1].pos + entries[-1].size > file.seek(0, os.SEEK_END):
        raise VideoError("it is cut off")
    file.seek(here)


def _turned(frame: VideoFrame) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.rot90(_pixels(frame), round(frame.rotation / 90)))


def _pixels(frame: VideoFrame) -> NDArray[np.uint8]:
    return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
