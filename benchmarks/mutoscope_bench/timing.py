"""What a list of seconds says: median, percentiles, spread, ratios. Knows numbers. Knows nothing of what took them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest ranks, as NumPy's default, from the nearer one. `share` is 0 to 1."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    gap, beyond = ordered[above] - ordered[below], position - below
    return ordered[below] + gap * beyond if beyond < 0.5 else ordered[above] - gap * (1 - beyond)


def spread(values: Sequence[float]) -> float:
    """The middle half of the values, as a share of their median; 0 for a single one."""
    low, middle, high = (percentile(values, share) for share in (0.25, 0.5, 0.75))
    return (high - low) / middle


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
