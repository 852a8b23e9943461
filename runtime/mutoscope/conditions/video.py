"""A clip of the request as what the video is made from: its latents, to which the noise of the first step is added.

Knows how many frames of a clip are read, and how they are resized. Knows nothing of video files, or of schedules.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from mutoscope_engines.session import Feeds, Host

from ..bundle.bundle import Bundle
from ..bundle.conditionings import VideoConditioning
from ..bundle.manifest import Defaults
from ..clips import Clip
from ..errors import RequestError
from .base import CLEAN, FRAMES, Condition, Settled, UseGraphs, VideoSize, joined
from .shown import shown


class VideoCondition(Condition):
    """As many frames of a clip as the video has, resized to it and encoded call by call; nothing where none is given.

    A plan reads them, because it names the clip by their pixels; they are in memory until the video is made.
    """

    def __init__(self, about: VideoConditioning, bundle: Bundle) -> None:
        self._about, self._lengths = about, bundle.manifest.frames

    def settle(self, request: Any, defaults: Defaults, *, guided: bool, size: VideoSize) -> Settled:
        about = self._about
        clip: Clip | None = getattr(request, about.name)
        if clip is None:
            return Settled({})
        count, found = size.num_frames, shown(clip, size)
        if (there := len(found.frames)) < count:
            raise RequestError(
                f"{about.name} has {there} frames, and num_frames asks for {count}; the most that it has "
                f"enough for is {max(each for each in self._lengths.counts if each <= there)}"
            )
        note = f"of {about.name} the first {count} frames are used, and what follows is left out"
        return Settled(
            {about.name: found.frames},
            facts={about.name: found.identity, about.strength: getattr(request, about.strength)},
            notes=(note,) if found.goes_on else (),
            roles=about.roles,
        )

    def encode(self, settled: Settled, run: UseGraphs) -> dict[str, Host]:
        if not settled.feeds:
            return {}
        calls = run(self._about.roles, self._chunks(settled.feeds[self._about.name]))
        return {CLEAN: joined(calls, "condition")}

    def _chunks(self, frames: Host) -> Iterator[Feeds]:
        """The frames of each call, f32 `[T, H, W, 3]`."""
        for start, stop in self._lengths.slices(len(frames)):
            yield {FRAMES: frames[start:stop].astype(np.float32)}
