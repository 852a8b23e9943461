"""A clip that a video goes on from: what it decides of the new frames, and what becomes of its own.

Knows requests, clips and the limits of a bundle. Knows nothing of graphs, or of who joins the frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np

from ..bundle.manifest import Manifest
from ..clips import Clip, Identity, read_clip
from ..errors import RequestError
from ..pictures import Picture, Pixels, fitted, sized_for
from ..request import VideoRequest
from ..values.frame_rates import parse_frame_rate, plain_frame_rate


@dataclass(frozen=True, eq=False)
class Before:
    """The clip that a video goes on from: its frames come before those that are made, in their size.

    Attributes:
        num_frames: of the clip, all of them.
        identity: what tells it from others.
    """

    clip: Clip
    num_frames: int
    identity: str
    last: Picture

    def frames(self, height: int, width: int) -> Iterator[Pixels]:
        """Each frame, uint8 `[height, width, 3]`.

        Raises:
            RequestError: the clip is another than was planned with, which shows at its end.
        """
        identity = Identity()
        for frame in islice(self.clip.frames(), self.num_frames):
            identity.add(frame)
            yield fitted(frame, height, width)
        if str(identity) != self.identity:
            raise RequestError(f"{self.clip.name} was changed since the video was planned; ask for it again")


def can_go_on(manifest: Manifest) -> bool:
    """Whether a model makes videos that go on from a clip: its last frame is a picture that they begin with."""
    return "image" in manifest.followed


def read_before(request: VideoRequest, manifest: Manifest) -> Before | None:
    """The clip that the request is to go on from, read once to its end; `None` where there is none.

    Raises:
        RequestError: it cannot be read, or is given with what cannot be beside it.
    """
    if request.extend is None:
        return None
    if not can_go_on(manifest):
        raise RequestError(
            "extend is for models that take a picture, which its last frame becomes; this one takes: "
            f"{', '.join(manifest.followed)}. Leave it out; export a model that takes one, such as Wan 2.2 TI2V-5B"
        )
    if beside := [name for name in ("image", "video") if getattr(request, name) is not None]:
        raise RequestError(f"extend already says what the new frames begin with; leave {beside[0]} out")
    clip, identity = read_clip(request.extend, name="extend"), Identity()
    for frame in clip.frames():
        identity.add(frame)
    return Before(clip, identity.count, str(identity), Picture(np.ascontiguousarray(frame)))


def going_on(request: VideoRequest, before: Before, manifest: Manifest) -> VideoRequest:
    """The request for the new part, in the size and at the rate of the clip where it says none."""
    head, sizes = before.clip.head, manifest.sizes
    found: dict[str, Any] = {"extend": None, "image": before.last}
    if request.fps is None:
        found["fps"] = parse_frame_rate(head.rate)
    if request.height is None and request.width is None:
        budget = manifest.defaults.height * manifest.defaults.width
        made = head.height in sizes["height"] and head.width in sizes["width"]
        kept = made and head.height * head.width <= budget
        size = (head.height, head.width) if kept else sized_for(head.height, head.width, budget, sizes)
        found |= dict(zip(("height", "width"), size, strict=True))
    return replace(request, **found)


def notes_on(before: Before, size: tuple[int, int], fps: Fraction, manifest: Manifest) -> Iterator[str]:
    """What becomes of the clip in the new video, for a person.

    Args:
        size: height and width of the new video.
        fps: at which it plays.
    """
    head, made_at = before.clip.head, parse_frame_rate(manifest.defaults.fps)
    if (head.height, head.width) != size:
        yield (
            f"the frames of extend are resized from {head.width}x{head.height} to {size[1]}x{size[0]}, the size of the "
            "new ones"
        )
    if head.has_sound:
        yield "the sound of extend is not kept"
    if head.rate is not None and fps != parse_frame_rate(head.rate):
        yield f"extend plays at {plain_frame_rate(fps)} frames per second, and not at its own rate"
    if made_at is not None and fps != made_at:
        yield (
            f"the video plays at {plain_frame_rate(fps)} frames per second, and the model makes "
            f"{plain_frame_rate(made_at)}; so what moves in the new frames is {float(fps / made_at):.2g} times "
            "as fast as the model means it"
        )
