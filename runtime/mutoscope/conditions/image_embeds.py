"""Pictures of the request as CLIP sees them, for a denoiser that attends to tokens of what they show.

Knows which pictures are encoded together. Knows nothing of picture files, or of what is done with the tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mutoscope_engines.session import Host

from ..bundle.bundle import Bundle
from ..bundle.conditionings import ImageEmbedsConditioning
from ..bundle.manifest import Defaults
from ..errors import RequestError
from ..pictures import for_clip, read_picture
from .base import Condition, Settled, UseGraphs, VideoSize


class ImageEmbedsCondition(Condition):
    """All of its pictures, encoded at once, whatever the size of the video."""

    def __init__(self, about: ImageEmbedsConditioning, bundle: Bundle) -> None:
        self._about = about

    def settle(self, request: Any, defaults: Defaults, *, guided: bool, size: VideoSize) -> Settled:
        sources = {name: getattr(request, name) for name in self._about.fields}
        if missing := [name for name, source in sources.items() if source is None]:
            raise RequestError(f"{missing[0]} is missing: this model makes a video from a picture, such as a PNG")
        pictures = {name: read_picture(source, name=name) for name, source in sources.items()}
        pixels = [for_clip(picture.pixels, name=name) for name, picture in pictures.items()]
        return Settled(
            {"pixels": np.stack(pixels)},
            facts={name: picture.identity for name, picture in pictures.items()},
            notes=tuple(note for picture in pictures.values() for note in picture.notes),
            roles=self._about.roles,
        )

    def encode(self, settled: Settled, run: UseGraphs) -> dict[str, Host]:
        (outputs,) = run(self._about.roles, [settled.feeds])
        return {name: outputs[output] for output, name in self._about.feeds.items()}
