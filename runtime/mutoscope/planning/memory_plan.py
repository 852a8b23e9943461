"""Which option each stage runs with, so that a video fits into the memory that it may take.

Knows bytes. Knows nothing of graphs, backends or devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

SHARE_FOR_GOOD = 0.25  # of the limit may be taken between videos, where activations of unknown size come on top


@dataclass(frozen=True)
class MemoryOption:
    """One way to run a stage, and the memory that it takes."""

    name: str
    weight_bytes: int  # on the device
    buffer_bytes: int  # inputs and outputs
    activation_bytes: int  # while it runs; stages share them, as they run one after the other
    streamed_bytes: int = 0  # of the weights, read where they come from while it runs: host memory, or their file
    streamable_bytes: int = 0  # as many of the weights may be streamed instead
    branches_per_call: int = 1
    calls_per_step: int = 1  # of the denoiser, each of which reads all that is streamed
    window: tuple[int, int] = (0, 0)  # h, w of the features that are decoded at once
    tiles: int = 1  # windows that a picture is decoded in
    activations_known: bool = True
    host_bytes: int = 0  # held in host memory beside it
    clip_bytes: int = 0  # of the clips that the video follows, where they lie in the same memory; shared by all stages
    keepable: bool = True  # whether its graphs may stay loaded between videos, and all at once

    @property
    def peak_bytes(self) -> int:
        """With all of its weights on the device."""
        return self.weight_bytes + self.buffer_bytes + self.activation_bytes + self.clip_bytes

    @property
    def least_bytes(self) -> int:
        """With as few of its weights on the device as may be."""
        return self.peak_bytes - self.streamable_bytes

    @property
    def bus_bytes(self) -> int:
        """Weights that are read in each step of the denoiser, or once in another stage; twice by two calls."""
        return self.streamed_bytes * self.calls_per_step


@dataclass(frozen=True)
class Stage:
    """What is open in memory at the same time, and all the ways to run it."""

    name: str  # of the stage; of one of several experts or encoders, its role
    options: tuple[MemoryOption, ...]  # the fastest first


@dataclass(frozen=True)
class MemoryPlan:
    """How each stage runs, with the weights that stay on the device."""

    limit_bytes: int  # of the device, for graphs
    options: dict[str, MemoryOption]  # the one that was chosen, by the name of its `Stage`
    keep_loaded: bool  # whether the weights of all stages stay between videos

    @property
    def peak_bytes(self) -> int:
        """At least, where the activations of a stage are not known."""
        if self.keep_loaded:
            return _resident_bytes(self.options.values())
        return max(option.peak_bytes for option in self.options.values())


class DoesNotFitError(ValueError):
    """A stage takes more than the limit, whatever the option."""

    def __init__(self, stage: Stage, limit_bytes: int) -> None:
        self.stage = stage.name
        self.option = min(stage.options, key=lambda option: option.least_bytes)
        super().__init__(f"the {stage.name} takes at least {self.option.least_bytes} bytes, {limit_bytes} are allowed")


class HostMemoryError(ValueError):
    """A stage fits on the device only with more in host memory than there is."""

    def __init__(self, stage: Stage, host_limit_bytes: int) -> None:
        self.stage = stage.name
        self.host_bytes = min(option.host_bytes for option in stage.options)
        super().__init__(
            f"the {stage.name} keeps at least {self.host_bytes} bytes in host memory of {host_limit_bytes}"
        )


def plan_memory(stages: Sequence[Stage], limit_bytes: int, host_limit_bytes: int) -> MemoryPlan:
    """Of the options of each stage that fit, the one that streams the fewest bytes; of several, the fastest.

    One stage runs after the other. All weights stay loaded where they fit too.

    Args:
        limit_bytes: what graphs may take on the device.
        host_limit_bytes: what a stage may keep in host memory beside them.

    Raises:
        DoesNotFitError: a stage fits on the device with no option.
        HostMemoryError: it does, but with none whose part in host memory fits there.
    """
    options = {stage.name: _best_that_fits(stage, limit_bytes, host_limit_bytes) for stage in stages}
    kept = all(option.keepable and not option.streamed_bytes for option in options.values())
    share = 1 if all(option.activations_known for option in options.values()) else SHARE_FOR_GOOD
    keeps = kept and _resident_bytes(options.values()) <= limit_bytes * share
    return MemoryPlan(limit_bytes, options, keeps)


def least_limit_bytes(stages: Sequence[Stage]) -> int:
    """The smallest limit at which a plan fits."""
    return max(min(option.least_bytes for option in stage.options) for stage in stages)


def _best_that_fits(stage: Stage, limit_bytes: int, host_limit_bytes: int) -> MemoryOption:
    fitting = [option for option in stage.options if option.least_bytes <= limit_bytes]
    if not fitting:
        raise DoesNotFitError(stage, limit_bytes)
    there = [_streaming(option, limit_bytes) for option in fitting if option.host_bytes <= host_limit_bytes]
    if not there:
        raise HostMemoryError(replace(stage, options=tuple(fitting)), host_limit_bytes)
    return min(there, key=lambda option: option.bus_bytes)


def _streaming(option: MemoryOption, limit_bytes: int) -> MemoryOption:
    """With no more of its weights streamed than it must."""
    streamed = max(0, option.peak_bytes - limit_bytes)
    return replace(option, weight_bytes=option.weight_bytes - streamed, streamed_bytes=streamed)


def _resident_bytes(options: Iterable[MemoryOption]) -> int:
    """Of stages whose weights and buffers stay, while they take the same memory for their activations in turns, and
    read the same clips."""
    options = list(options)
    held = sum(option.weight_bytes + option.buffer_bytes for option in options)
    return held + max(option.activation_bytes + option.clip_bytes for option in options)
