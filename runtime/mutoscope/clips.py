"""Clips that a video follows or goes on from: the frames of a video file, or of an array, as a person sees them.

Knows video files through `video_files`. Knows no request, no model and no bundle.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import RequestError
from .pictures import Picture, Pixels, kind_of, opened, read_picture, refuse_large, shown_path
from .video_files import Head, VideoError, every_frame, head_of

READABLE = "MP4, MOV, MKV, WebM or AVI"
LEAST_PIXELS = 832 * 480  # that a frame counts as: it is resized to the video, and encoded in its size


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip that was opened. Its frames are decoded when they are asked for, so that a long one takes no memory.

    Attributes:
        head: the size of its frames, their rate, and whether there is sound.
        name: the parameter that it is the value of, for errors.
        most_pixels: of all frames together, where each has at least `LEAST_PIXELS`; `None` where there is no limit.
    """

    head: Head
    name: str
    source: str | bytes | NDArray[np.uint8]
    most_pixels: int | None = None

    def frames(self) -> Iterator[Pixels]:
        """Each frame, uint8 `[H, W, 3]`, from the first; decoded anew whenever it is called.

        Raises:
            RequestError: the file cannot be read, is not that which was opened, or has more pixels than are allowed.
        """
        if isinstance(self.source, np.ndarray):
            yield from self.source
            return
        with _file(self.source, self.name) as file, _in_words(self.name, self.source):
            for number, frame in enumerate(every_frame(file, _check(self.name, self.source)), 1):
                if frame.shape[:2] != (self.head.height, self.head.width):
                    raise VideoError("it became another file meanwhile")
                self._refuse_long(number)
                yield frame

    def _refuse_long(self, count: int) -> None:
        own = self.head.height * self.head.width
        pixels = max(own, LEAST_PIXELS)
        if self.most_pixels is not None and count * pixels > self.most_pixels:
            raise RequestError(
                f"{self.name} has more than {self.most_pixels // pixels} frames, the most that are read where each has "
                f"{self.head.width}x{self.head.height} pixels; cut it{', or make it smaller' * (own == pixels)}"
            )


ClipSource = str | os.PathLike[str] | bytes | bytearray | NDArray[np.uint8] | Clip


def read_clip(source: ClipSource, *, name: str = "video", most_pixels: int | None = None) -> Clip:
    """Opens a clip, and decodes its first frame.

    Frames are turned as the file says. Its sound is not read.

    Args:
        source: a path, the bytes of a video file, or uint8 `[T, H, W, 3]`; what was opened before is given back.
            Nothing is ever fetched.
        name: the parameter that it is the value of, for errors.
        most_pixels: that all frames of a file may have together, where each counts as `LEAST_PIXELS` or more; it is
            found out while they are decoded.

    Raises:
        RequestError: it is not a video that can be read, or its frames have more than `pictures.MOST_PIXELS`.
    """
    if isinstance(source, Clip):
        return source
    if isinstance(source, np.ndarray):
        _refuse_other_array(source, name)
        _, height, width, _ = source.shape
        return Clip(Head(height, width, rate=None, has_sound=False), name, source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        given: str | bytes = bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        given = os.fspath(source)
    else:
        raise RequestError(
            f"{name} must be a path, the bytes of a video file, or an array uint8 [T, H, W, 3]; got {kind_of(source)}"
        )
    with _file(given, name) as file, _in_words(name, given):
        return Clip(head_of(file, _check(name, given)), name, given, most_pixels)


def read_clip_or_picture(source: ClipSource | Picture, *, name: str) -> Clip | Picture:
    """Opens a clip, or reads a picture that stands for each frame of one.

    Args:
        source: as `read_clip` has it, or `read_picture`.
        name: the parameter that it is the value of, for errors.

    Raises:
        RequestError: it is neither a video nor a picture that can be read.
    """
    if isinstance(source, Picture) or (isinstance(source, np.ndarray) and source.ndim == 3):
        return read_picture(source, name=name)
    try:
        return read_clip(source, name=name)
    except RequestError as of_clip:
        if isinstance(source, (Clip, np.ndarray)):
            raise
        try:
            return read_picture(bytes(source) if isinstance(source, bytearray) else source, name=name)
        except RequestError:
            raise of_clip from None


class Identity:
    """What tells a clip from others: size, number of frames and a hash of their pixels, however they are stored.

    Attributes:
        count: of the frames so far.
    """

    def __init__(self) -> None:
        self._hash, self._shape, self.count = hashlib.sha256(), (0, 0), 0

    def add(self, frame: Pixels) -> None:
        """Counts the next frame, uint8 `[H, W, 3]`."""
        self._hash.update(frame.tobytes())
        self._shape, self.count = (frame.shape[0], frame.shape[1]), self.count + 1

    def __str__(self) -> str:
        """`640x480x81 sha256:` and 64 hexadecimal digits."""
        height, width = self._shape
        return f"{width}x{height}x{self.count} sha256:{self._hash.hexdigest()}"


def identity_of(frames: Iterable[Pixels]) -> str:
    """That of some frames of a clip, from its first on."""
    identity = Identity()
    for frame in frames:
        identity.add(frame)
    return str(identity)


def _refuse_other_array(array: NDArray[np.generic], name: str) -> None:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not array.size:
        raise RequestError(
            f"{name} must be an array uint8 [T, H, W, 3] with values from 0 to 255; got {array.dtype} "
            f"{list(array.shape)}"
        )


def _file(source: str | bytes, name: str) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else opened(source, name)


def _shown(source: str | bytes | NDArray[np.uint8]) -> str:
    return shown_path(source) if isinstance(source, str) else f"{len(source)} bytes"


def _check(name: str, source: str | bytes | NDArray[np.uint8]) -> Callable[[int, int], None]:
    return lambda width, height: refuse_large(width, height, name, _shown(source))


@contextmanager
def _in_words(name: str, source: str | bytes) -> Iterator[None]:
    try:
        yield
    except VideoError as error:
        raise RequestError(
            f"{name} is not a video that can be read: {_shown(source)}: {error}. Give a video such as {READABLE}"
        ) from error
