"""Pictures of the request as the first and the last frame of the video.

Knows how they are resized, what stands for frames that are not given, and which inputs of the denoiser all of this
feeds. Knows nothing of picture files, or of what a model does with a frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mutoscope_engines.session import Feeds, Host
from mutoscope_engines.symbols import sized
from numpy.typing import NDArray

from ..bundle.bundle import Bundle
from ..bundle.conditionings import ImageConditioning
from ..bundle.interface import fed_by_pictures
from ..bundle.manifest import Defaults
from ..errors import EXPORT_AGAIN, BundleError, RequestError
from ..pictures import fitted, read_picture
from ..request import PICTURES
from .base import FRAMES, GREY, Condition, Settled, UseGraphs, VideoSize, joined


class ImageCondition(Condition):
    """Pictures, resized to the video, and encoded: the first alone, or within a clip that is grey between them.

    Where none is given, the inputs that they feed are zeros.
    """

    def __init__(self, about: ImageConditioning, bundle: Bundle) -> None:
        if about.name not in PICTURES:
            raise BundleError(
                f"the bundle follows {about.name!r} as a picture; a request has the pictures {', '.join(PICTURES)}. To "
                f"mend the bundle, {EXPORT_AGAIN}"
            )
        self._about = about
        self._frames, self._scale = bundle.manifest.frames, bundle.manifest.geometry.vae_scale_factor_temporal
        own = {about.given, *about.feeds.values()}
        self._shapes = {name: each.shape for name, each in fed_by_pictures(bundle.manifest).items() if name in own}

    def settle(self, request: Any, defaults: Defaults, *, guided: bool, size: VideoSize) -> Settled:
        about = self._about
        sources = {name: source for name in about.fields if (source := getattr(request, name)) is not None}
        self._refuse_missing(sources)
        fed = {name: np.zeros(sized(shape, size.symbols), np.float32) for name, shape in self._shapes.items()}
        if not sources:
            return Settled(fed)
        pictures = {name: read_picture(source, name=name) for name, source in sources.items()}
        shown = {name: fitted(each.pixels, size.height, size.width) for name, each in pictures.items()}
        fed[about.given] = self._given(fed[about.given], ends=about.last in shown)
        return Settled(
            {**shown, about.given: fed[about.given]},
            facts={name: each.identity for name, each in pictures.items()},
            notes=tuple(note for each in pictures.values() for note in each.notes),
            roles=about.roles,
        )

    def encode(self, settled: Settled, run: UseGraphs) -> dict[str, Host]:
        about = self._about
        if about.name not in settled.feeds:
            return dict(settled.feeds)
        calls = run(about.roles, self._chunks(settled.feeds))
        encoded = {name: joined(calls, output) for output, name in about.feeds.items()}
        return encoded | {about.given: settled.feeds[about.given]}

    def _refuse_missing(self, sources: Mapping[str, Any]) -> None:
        about = self._about
        if about.required and about.name not in sources:
            raise RequestError(f"{about.name} is missing: this model makes a video from a picture, such as a PNG")
        if about.last_required and about.last not in sources:
            raise RequestError(f"{about.last} is missing: this model makes a video between two pictures. Give it, too")
        if about.last in sources and about.name not in sources:
            raise RequestError(
                f"{about.name} is missing: {about.last} is only for videos that begin with one. Give both"
            )

    def _given(self, none: NDArray[np.float32], *, ends: bool) -> NDArray[np.float32]:
        """Which frames are pictures, in the shape of `none`."""
        if self._about.following is None:
            none[0] = 1
            return none
        by_frame = none.T.ravel()  # as if each latent frame of the first call, too, were so many frames
        num_first = self._scale * self._frames.latents_per_call[0] - self._frames.frames_per_call[0] + 1
        if ends and by_frame.size == num_first:
            raise RequestError(
                f"a video of one frame has no end for {self._about.last}; leave it out, or raise num_frames"
            )
        by_frame[:num_first] = 1
        if ends:
            by_frame[-1] = 1
        return np.ascontiguousarray(by_frame.reshape(none.shape[::-1]).T)

    def _chunks(self, feeds: Mapping[str, Host]) -> Iterator[Feeds]:
        """The frames of each call, f32 `[T, H, W, 3]`; no more of the clip is in memory at once."""
        about, picture = self._about, feeds[self._about.name]
        if about.following is None:
            yield {FRAMES: picture[None].astype(np.float32)}
            return
        last = None if about.last is None else feeds.get(about.last)
        num_frames = self._frames.num_frames(feeds[about.given].shape[1])
        for start, stop in self._frames.slices(num_frames):
            frames = np.full((stop - start, *picture.shape), GREY, np.float32)
            if start == 0:
                frames[0] = picture
            if stop == num_frames and last is not None:
                frames[-1] = last
            yield {FRAMES: frames}
