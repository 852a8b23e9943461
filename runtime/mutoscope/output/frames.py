"""Frames, what is true of all frames of a video, and the check that they are so. Knows arrays and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError, ShapeError
from ..values import checks

Frames = NDArray[np.uint8]
"""uint8 `[n, H, W, 3]`, RGB."""


@dataclass(frozen=True, kw_only=True)
class VideoHeader:
    """What a file is told of a video before its first frame.

    Raises:
        RequestError: a size, length or frame rate that no video has, or a recipe that is not ASCII.
    """

    height: int
    width: int
    num_frames: int
    fps: Fraction
    has_footage: bool = False  # whether frames of a clip that was given are in it, as they were or changed
    threads: int = 1  # that an encoder may use
    title: str = ""  # what the video shows
    recipe: str = ""  # how it was made, as JSON in ASCII; goes where the format keeps a comment

    def __post_init__(self) -> None:
        for name in ("height", "width", "num_frames", "threads"):
            checks.whole(name, getattr(self, name), minimum=1, maximum=2**31 - 1)
        object.__setattr__(self, "fps", checks.frame_rate("fps", self.fps))  # whoever writes frames may give 24 or 12.5
        if not self.recipe.isascii():
            raise RequestError(f"recipe must be ASCII, as json.dumps writes it; got {self.recipe[:60]!r}")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """T, H, W, 3"""
        return self.num_frames, self.height, self.width, 3


def checked(chunks: Iterable[Frames], header: VideoHeader) -> Iterator[Frames]:
    """The same chunks, each found to be what the header says, and as many in all.

    Raises:
        ShapeError: frames of another type or size, too many or too few.
    """
    done = 0
    for chunk in chunks:
        refuse_unlike(chunk, header.shape[1:])
        done += len(chunk)
        if done > header.num_frames:
            break
        yield chunk
    if done != header.num_frames:
        count = "more" if done > header.num_frames else done
        raise ShapeError(f"the video must have {header.num_frames} frames; there are {count}")


def refuse_unlike(chunk: Frames, shape: tuple[int, ...]) -> None:
    """
    Raises:
        ShapeError: the frames are not uint8, or not of this shape, `[H, W, 3]`.
    """
    if chunk.dtype != np.uint8 or tuple(chunk.shape[1:]) != shape:
        raise ShapeError(f"frames are {chunk.dtype} {tuple(chunk.shape)}; they must be uint8 {('n', *shape)}")
