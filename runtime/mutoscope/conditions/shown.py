"""As much of a clip as a video has frames, in the size of the video. Knows resizing, and nothing of networks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import Frames
from ..clips import Clip, Identity
from ..errors import RequestError
from ..pictures import Picture, fitted
from .base import VideoSize


@dataclass(frozen=True, eq=False)
class Shown:
    """The first frames of a clip, resized to uint8 `[T, H, W, 3]`; fewer than the video has, where it has fewer."""

    frames: NDArray[np.uint8]
    identity: str  # of these frames as they were
    goes_on: bool  # whether the clip has more


def shown(source: Clip | Picture, size: VideoSize) -> Shown:
    """The frames of a clip, or of a picture as a clip of one frame; resized as Diffusers does."""
    if isinstance(source, Picture):
        frame = fitted(source.pixels, size.height, size.width)[None]
        return Shown(frame, source.identity, False)
    count = size.num_frames
    frames, identity, further = np.empty((count, size.height, size.width, 3), np.uint8), Identity(), False
    for number, frame in enumerate(islice(source.frames(), count + 1)):
        further = number == count
        if not further:
            identity.add(frame)
            frames[number] = fitted(frame, size.height, size.width)
    return Shown(frames[: identity.count], str(identity), further)


def shown_whole(clip: Clip, size: VideoSize, lengths: Frames) -> tuple[Shown, tuple[str, ...]]:
    """The frames of a clip that is at least as long as the video, and a note for a person where it is longer.

    Args:
        lengths: that a video of the model may have.

    Raises:
        RequestError: it is shorter; names the longest video that it is long enough for.
    """
    count, found = size.num_frames, shown(clip, size)
    if (there := len(found.frames)) < count:
        enough = [each for each in lengths.counts if each <= there]
        lower = f", or num_frames={enough[-1]}" if enough else ""
        raise RequestError(
            f"{clip.name} has {there} frames, and the video that is made of it has {count}; give a longer clip{lower}"
        )
    note = f"of {clip.name} the first {count} frames are used, and what follows is left out"
    return found, (note,) if found.goes_on else ()
