"""A number of the request as an input of the denoiser, such as the frame rate of models that are told it."""

from __future__ import annotations

from typing import Any

from mutoscope_engines.session import Host

from ..bundle.bundle import Bundle
from ..bundle.conditionings import NumberConditioning
from ..bundle.manifest import Defaults
from ..values import checks
from ..values.frame_rates import parse_frame_rate, plain_frame_rate
from .base import Condition, Settled, UseGraphs, VideoSize, scalar


class NumberCondition(Condition):
    """A field of the request that is a number, fed f32 `[1]`, the same for all branches."""

    def __init__(self, about: NumberConditioning, bundle: Bundle) -> None:
        self._about = about

    def settle(self, request: Any, defaults: Defaults, *, guided: bool, size: VideoSize) -> Settled:
        about = self._about
        value = getattr(request, about.name)
        if value is None:
            value = getattr(defaults, about.name)
            value = parse_frame_rate(value) if about.name == "fps" else value  # the one that may be a ratio, as text
        rate = checks.frame_rate("fps", value) if about.name == "fps" else None
        number = checks.real(
            about.name, value if rate is None else float(rate), minimum=about.minimum, maximum=about.maximum
        )
        return Settled({about.input: scalar(number)}, facts={about.name: plain_frame_rate(rate) if rate else number})

    def encode(self, settled: Settled, run: UseGraphs) -> dict[str, Host]:
        return dict(settled.feeds)
