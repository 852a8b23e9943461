"""What every kind of conditioning does: settle a value of the request when a video is planned, encode it when it runs.

Knows neither kinds nor graphs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mutoscope_engines.session import Feeds, Host
from numpy.typing import NDArray

from ..bundle.manifest import Defaults

CLEAN = "clean_latents"

FRAMES = "frames"
"""The input of an encoder that takes frames, f32 `[T, H, W, 3]`."""

GREY = 127.5
"""The middle of the levels 0..255, which an encoder is given where nothing is."""

UseGraphs = Callable[[Sequence[str], Iterable[Feeds]], Sequence[Mapping[str, Host]]]
"""Runs a graph once for each of the feeds, and gives what each call gave. Of two roles, the first is for the first
call, and caches pass from call to call."""


def joined(calls: Sequence[Mapping[str, Host]], output: str) -> Host:
    """The latents that an encoder gave in all its calls, one after the other, `[C, F, h, w]`."""
    return np.concatenate([each[output] for each in calls], axis=1)


Fact = str | int | float | tuple[float, ...]
"""What a plan says of one thing that a video follows."""


@dataclass(frozen=True)
class VideoSize:
    """How large a video is, in pixels and in the symbols of graphs' shapes."""

    height: int  # H
    width: int  # W
    num_frames: int  # T
    symbols: Mapping[str, int]  # F, h, w


@dataclass(frozen=True, eq=False)
class Settled:
    """A value of the request, checked and ready: what a condition encodes later, and nothing that it would have to ask.

    Attributes:
        feeds: what decides about what it is encoded into, by name: inputs of its graphs or of the denoiser.
        symbols: the sizes that it gives to symbols in the shapes of graphs.
        facts: what a plan says of it, by the names of the request.
        notes: what the caller should know, for a person.
        roles: the graphs that encode it; none where there is nothing to encode.
    """

    feeds: Mapping[str, NDArray[Any]]
    symbols: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()


class Condition(ABC):
    """One conditioning of a bundle, with what it needs of the bundle's files loaded. Knows nothing of any one video."""

    @abstractmethod
    def settle(self, request: Any, defaults: Defaults, *, guided: bool, size: VideoSize) -> Settled:
        """Checks what the request says, or else the bundle's default.

        Args:
            request: has a field of the conditioning's name; `None` where the caller said nothing.
            guided: whether the video has a second branch, which guidance steers away from.
            size: of the video.

        Raises:
            RequestError: the value cannot be served; says what can.
        """

    @abstractmethod
    def encode(self, settled: Settled, run: UseGraphs) -> dict[str, Host]:
        """The inputs of the denoiser that it feeds, by name; those with a row a branch begin with the negative one.

        Or `CLEAN`: latents without noise f32 `[C, F, h, w]`, from which the first step begins.
        """


def scalar(value: float) -> NDArray[np.float32]:
    """A number as graphs take it, f32 `[1]`."""
    return np.asarray([value], np.float32)
