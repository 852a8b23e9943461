"""The regression gate: what got slower since an older result, on the same machine.

Knows two results. Knows nothing of how they were measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mutoscope.errors import RequestError

from .implementations import OURS
from .result import Result, Row
from .stages import MAIN_STAGES
from .timing import slowed_beyond_noise

# Smaller changes are not worth stopping for, however quiet the machine; of what was measured once or twice, nothing
# tells the noise.
LEAST_GROWTH = 0.05
LEAST_GROWTH_OF_FEW, FEW = 0.5, 2
LEAST_MEMORY_GROWTH = 0.1
# What must be the same for two times to mean the same. Versions of libraries are not among them: they may be the cause.
SAME_MACHINE = ("cpu", "cpu_class", "cores", "memory_bytes", "system", "gpus")
SAME_SETTINGS = ("threads", "quick", "request")


@dataclass(frozen=True)
class Change:
    """One row, then and now. `what` is "time" or "memory"."""

    case: str
    stage: str
    implementation: str
    precision: str | None
    what: str
    old: float
    new: float
    worse: bool  # beyond the noise

    @property
    def ratio(self) -> float:
        """Above 1, it grew."""
        return self.new / self.old


def refuse_other_machine(machine: dict[str, Any], old: Result, path: object) -> None:
    """Compares the facts that times depend on.

    Raises:
        RequestError: the older result is of another machine; says what differs.
    """
    differing = [name for name in SAME_MACHINE if name in old.machine and machine.get(name) != old.machine[name]]
    if differing:
        facts = "; ".join(f"{name}: {old.machine[name]} then, {machine.get(name)} now" for name in differing)
        raise RequestError(
            f"{path} was measured on another machine, and times of two machines cannot be compared ({facts}). "
            "Measure the old version here, with --json, and compare with that"
        )


def refuse_other_settings(settings: dict[str, Any], scenario: str, old: Result, path: object) -> None:
    """Compares what was asked for.

    Raises:
        RequestError: the older result did other work.
    """
    then = old.settings | {"scenario": old.scenario}
    now = settings | {"scenario": scenario}
    for name in (*SAME_SETTINGS, "scenario"):
        if then.get(name) != now.get(name):
            raise RequestError(
                f"{path} was measured with {name} {then.get(name)!r}, this run has {now.get(name)!r}; give the same"
            )


def compare(old: Result, new: Result) -> list[Change]:
    """Every row of ours that both have, the worst first.

    Raises:
        RequestError: there is none.
    """
    then = {_key(row): row for row in old.rows if row.seconds and row.implementation.startswith(OURS)}
    changes = [
        change for row in new.rows if row.seconds and _key(row) in then for change in _changes(then[_key(row)], row)
    ]
    if not changes:
        raise RequestError("the older result has no row in common with this run; give the same cases and precisions")
    return sorted(changes, key=lambda change: (not change.worse, -change.ratio))


def _changes(old: Row, new: Row) -> Iterator[Change]:
    assert old.median_s is not None and new.median_s is not None
    names = (new.case, new.stage or "", new.implementation, new.precision)
    least = LEAST_GROWTH_OF_FEW if min(len(old.seconds), len(new.seconds)) <= FEW else LEAST_GROWTH
    yield Change(*names, "time", old.median_s, new.median_s, slowed_beyond_noise(old.seconds, new.seconds, least))
    if old.peak_rss_bytes and new.peak_rss_bytes and new.stage in MAIN_STAGES:
        grown = new.peak_rss_bytes / old.peak_rss_bytes - 1 > LEAST_MEMORY_GROWTH
        yield Change(*names, "memory", old.peak_rss_bytes, new.peak_rss_bytes, grown)


def _key(row: Row) -> tuple[str, str | None, str, str | None]:
    return row.case, row.stage, row.implementation, row.precision
