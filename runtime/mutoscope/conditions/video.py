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
from ..bundle.contract import ROLES
from ..bundle.manifest import Defaults
from ..clips import Clip
from .base import CLEAN, FRAMES, Condition, Settled, UseGraphs, VideoSize, joined
from .shown import shown_whole


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
        found, notes = shown_whole(clip, size, self._lengths)
        return Settled(
            {about.name: found.frames},
            facts={about.name: found.identity, about.strength: getattr(request, about.strength)},
            notes=notes,
            roles=about.roles,
        )

    def encode(self, settled: Settled, run: UseGraphs) -> dict[str, Host]:
        if not settled.feeds:
            return {}
        calls = run(self._about.roles, self._chunks(settled.feeds[self._about.name]))
        (latents,) = ROLES[self._about.role].gives
        return {CLEAN: joined(calls, latents)}

    def _chunks(self, frames: Host) -> Iterator[Feeds]:
        """The frames of each call, f32 `[T, H, W, 3]`."""
        for start, stop in self._lengths.slices(len(frames)):
            yield {FRAMES: frames[start:stop].astype(np.float32)}
