"""What a list of seconds says: median, percentiles, spread, ratios. Knows numbers. Knows nothing of what took them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest ranks, as NumPy's default. `share` is 0 to 1."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def spread(values: Sequence[float]) -> float:
    """The middle half of the values, as a share of their median; 0 for a single one."""
    return (percentile(values, 0.75) - percentile(values, 0.25)) / statistics.median(values)


@dataclass(frozen=True)
class Ratio:
    """A peer's time over ours: above 1, we are faster. `low` and `high` are its least and greatest round."""

    ratio: float
    low: float
    high: float


def paired_ratio(theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
    """The median over rounds; in each, both ran one after the other, so that what slowed one slowed the other."""
    rounds = [one / other for one, other in zip(theirs, ours, strict=True)]
    return Ratio(statistics.median(rounds), min(rounds), max(rounds))


def slowed_beyond_noise(old: Sequence[float], new: Sequence[float], least: float) -> bool:
    """Whether the median grew by more than `least` (a share) and by more than both spreads together."""
    growth = statistics.median(new) / statistics.median(old) - 1
    return growth > max(least, spread(old) + spread(new))
