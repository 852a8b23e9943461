"""A picture of the request as the first frame of the video.

Knows how it is resized, and which inputs of the denoiser it feeds. Knows nothing of picture files, or of what a model
does with a frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mutoscope_engines.session import Host
from mutoscope_engines.symbols import sized

from ..bundle.bundle import Bundle
from ..bundle.interface import fed_by_pictures
from ..bundle.manifest import Defaults, ImageConditioning
from ..errors import EXPORT_AGAIN, BundleError, RequestError
from ..pictures import fitted, read_picture
from ..request import PICTURES
from .base import Condition, Settled, UseGraph, VideoSize

_FRAMES = "frames"  # the input of the encoder


class ImageCondition(Condition):
    """A picture, resized to the video, and encoded once. Where none is given, the inputs that it feeds are zeros."""

    def __init__(self, about: ImageConditioning, bundle: Bundle) -> None:
        if about.name not in PICTURES:
            raise BundleError(
                f"the bundle follows {about.name!r} as a picture; a request has the pictures {', '.join(PICTURES)}. To "
                f"mend the bundle, {EXPORT_AGAIN}"
            )
        self._about = about
        own = {about.given, *about.feeds.values()}
        self._shapes = {name: each.shape for name, each in fed_by_pictures(bundle.manifest).items() if name in own}

    def settle(self, request: Any, defaults: Defaults, *, guided: bool, size: VideoSize) -> Settled:
        about, source = self._about, getattr(request, self._about.name)
        fed = {name: np.zeros(sized(shape, size.symbols), np.float32) for name, shape in self._shapes.items()}
        if source is None:
            if about.required:
                raise RequestError(f"this model makes a video from a picture; give {about.name}, such as a PNG file")
            return Settled(fed)
        picture = read_picture(source, name=about.name)
        frame = fitted(picture.pixels, size.height, size.width)
        fed[about.given][0] = 1
        feeds = {_FRAMES: frame[None].astype(np.float32), about.given: fed[about.given]}
        return Settled(feeds, facts={about.name: picture.identity}, notes=picture.notes)

    def encode(self, settled: Settled, run: UseGraph) -> dict[str, Host]:
        if _FRAMES not in settled.feeds:
            return dict(settled.feeds)
        outputs = run(self._about.role, {_FRAMES: settled.feeds[_FRAMES]})
        encoded = {name: outputs[output] for output, name in self._about.feeds.items()}
        return encoded | {self._about.given: settled.feeds[self._about.given]}
