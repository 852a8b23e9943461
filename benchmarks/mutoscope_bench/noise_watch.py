"""Whether the machine was quiet while something was measured: a pulse, other programs' share, the load before.

Knows processes and their time on the processor. Knows nothing of what they do.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress

import psutil
from mutoscope_engines.system.machine import usable_cores

from .result import Noise
from .timing import spread

# Beyond these, differences of a few percent cannot be told from chance.
MOST_PULSE_SPREAD = 0.1
MOST_OTHERS_SHARE = 0.1
MOST_ROW_SPREAD = 0.2
MOST_LOAD_PER_CORE = 0.5


class NoiseWatch:
    """Watches rounds: `before` and `after` each, with the processes that are measured in it."""

    def __init__(self) -> None:
        self.load_average = psutil.getloadavg()[0]
        self._pulses: list[float] = []
        self._others = self._whole = 0.0
        self._begun: tuple[float, float, float] | None = None

    def before(self, pids: Iterable[int]) -> None:
        """Call it when a round begins, with the processes that will run."""
        self._pulses.append(_pulse())
        busy = _busy_s()
        self._begun = None if busy is None else (time.monotonic(), busy, _taken_s(pids))

    def after(self, pids: Iterable[int]) -> None:
        """Call it when the round has ended, with the same processes."""
        busy = _busy_s()
        if self._begun is None or busy is None:
            return
        started, busy_before, taken_before = self._begun
        self._whole += (time.monotonic() - started) * usable_cores()
        self._others += max(0.0, busy - busy_before - (_taken_s(pids) - taken_before))

    def verdict(self, row_spreads: dict[str, float]) -> Noise:
        """`row_spreads`: of the main time of each of our own rows, by a name for a person."""
        pulse = spread(self._pulses) if self._pulses else 0.0
        others = self._others / self._whole if self._whole else None
        reasons = []
        if pulse > MOST_PULSE_SPREAD:
            reasons.append(f"the same small piece of work took times that differ by {pulse:.0%}")
        if others is not None and others > MOST_OTHERS_SHARE:
            reasons.append(f"other programs took {others:.0%} of the cores meanwhile")
        if self.load_average > MOST_LOAD_PER_CORE * usable_cores():
            reasons.append(f"the load average was {self.load_average:.1f} when it began")
        wide = {name: value for name, value in row_spreads.items() if value > MOST_ROW_SPREAD}
        reasons += [f"the runs of {name} differ by {value:.0%}" for name, value in wide.items()]
        return Noise(
            quiet=not reasons,
            reasons=tuple(reasons),
            pulse_spread=round(pulse, 4),
            others_cpu_share=None if others is None else round(others, 4),
            load_average_before=round(self.load_average, 2),
        )


def _pulse() -> float:
    """Seconds that a fixed piece of work takes, the better of two: only what lasts counts."""
    return min(_count() for _ in range(2))


def _count() -> float:
    started = time.perf_counter()
    total = 0
    for number in range(200_000):
        total += number
    return time.perf_counter() - started


def _busy_s() -> float | None:
    """Seconds in which the machine's cores did something, all together; `None` where this process cannot know."""
    if psutil.cpu_count() != usable_cores():
        return None  # others' work on cores that are not ours takes nothing from us
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))


def _taken_s(pids: Iterable[int]) -> float:
    total = time.process_time()
    for pid in pids:
        with suppress(psutil.Error):  # it has ended
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total
