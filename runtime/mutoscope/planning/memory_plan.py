"""Which way each stage runs, so that a video fits into the memory that it may take.

Knows bytes. Knows nothing of graphs, backends or devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

SHARE_FOR_GOOD = 0.25  # of the limit may be taken between videos, where activations of unknown size come on top


@dataclass(frozen=True)
class Way:
    """One way to run a stage, and what it takes."""

    name: str
    weight_bytes: int  # on the device
    buffer_bytes: int  # inputs and outputs
    activation_bytes: int  # while it runs; stages share them, as they run one after the other
    streamed_bytes: int = 0  # of the weights, read where they come from while it runs: host memory, or their file
    streamable_bytes: int = 0  # as many of the weights may be streamed instead
    branches_per_call: int = 1
    window: tuple[int, int] = (0, 0)  # of the features that are decoded at once
    activations_known: bool = True
    host_bytes: int = 0  # held in host memory beside it
    keepable: bool = True  # whether its graphs may stay loaded between videos, and all at once

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.buffer_bytes + self.activation_bytes

    @property
    def least_bytes(self) -> int:
        return self.peak_bytes - self.streamable_bytes


@dataclass(frozen=True)
class Stage:
    name: str
    ways: tuple[Way, ...]  # the fastest first


@dataclass(frozen=True)
class MemoryPlan:
    """The way of each stage by its name, with the weights that stay on the device."""

    limit_bytes: int
    ways: dict[str, Way]
    keep_loaded: bool  # whether the weights of all stages stay between videos

    @property
    def peak_bytes(self) -> int:
        if self.keep_loaded:
            return _resident_bytes(self.ways.values())
        return max(way.peak_bytes for way in self.ways.values())


class DoesNotFitError(ValueError):
    """A stage takes more than the limit in every way."""

    def __init__(self, stage: Stage, limit_bytes: int) -> None:
        self.stage = stage.name
        self.way = min(stage.ways, key=lambda way: way.least_bytes)
        super().__init__(f"the {stage.name} takes at least {self.way.least_bytes} bytes, {limit_bytes} are allowed")


def plan_memory(stages: Sequence[Stage], limit_bytes: int) -> MemoryPlan:
    """The fastest way of each stage that fits, one stage after the other; all weights stay loaded where they fit too.

    Raises:
        DoesNotFitError: a stage fits in no way.
    """
    ways = {stage.name: _first_that_fits(stage, limit_bytes) for stage in stages}
    kept = all(way.keepable and not way.streamed_bytes for way in ways.values())
    share = 1 if all(way.activations_known for way in ways.values()) else SHARE_FOR_GOOD
    keeps = kept and _resident_bytes(ways.values()) <= limit_bytes * share
    return MemoryPlan(limit_bytes, ways, keeps)


def least_limit_bytes(stages: Sequence[Stage]) -> int:
    """The smallest limit at which a plan fits."""
    return max(min(way.least_bytes for way in stage.ways) for stage in stages)


def _first_that_fits(stage: Stage, limit_bytes: int) -> Way:
    for way in stage.ways:
        if way.least_bytes <= limit_bytes:
            streamed = max(0, way.peak_bytes - limit_bytes)
            return replace(way, weight_bytes=way.weight_bytes - streamed, streamed_bytes=streamed)
    raise DoesNotFitError(stage, limit_bytes)


def _resident_bytes(ways: Iterable[Way]) -> int:
    """Of stages whose weights and buffers stay, while they take the same memory for their activations in turns."""
    ways = list(ways)
    return sum(way.weight_bytes + way.buffer_bytes for way in ways) + max(way.activation_bytes for way in ways)
