"""The figures against NumPy and against what they are defined as."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutoscope_bench.timing import paired_ratio, percentile, slowed_beyond_noise, spread

SECONDS = st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=30)


@given(SECONDS, st.floats(0, 1))
def test_a_percentile_is_that_of_numpy(seconds: list[float], share: float) -> None:
    assert percentile(seconds, share) == pytest.approx(np.quantile(seconds, share))


@given(SECONDS)
def test_the_spread_is_the_middle_half_over_the_median(seconds: list[float]) -> None:
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    assert spread(seconds) == pytest.approx((high - low) / middle, abs=1e-9)


def test_a_ratio_is_of_runs_that_were_taken_together() -> None:
    """The machine was twice as slow in the second round; the ratio does not see it."""
    found = paired_ratio([3.0, 6.0, 3.3], [1.0, 2.0, 1.0])
    assert (found.ratio, found.low, found.high) == (3.0, 3.0, 3.3)


@pytest.mark.parametrize(
    ("new", "slower"),
    [
        ([1.3, 1.31, 1.32], True),
        ([1.03, 1.03, 1.03], False),  # less than is worth stopping for
        ([0.7, 1.3, 1.9], False),  # its own runs differ by more
        ([0.5, 0.5, 0.5], False),
    ],
)
def test_slower_is_what_both_spreads_together_do_not_explain(new: list[float], slower: bool) -> None:
    assert slowed_beyond_noise([1.0, 1.01, 1.02], new, least=0.05) is slower
