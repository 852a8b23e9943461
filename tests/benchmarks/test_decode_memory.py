"""What decides whether memory grew."""

from __future__ import annotations

import pytest

from benchmarks.decode_memory import FRAMES, KEPT, OURS, THEIRS, growth, passes


def _rows(ours: float, kept: float) -> list[dict[str, object]]:
    """Peaks that grow by these shares of 3 * 64 * 64 bytes for each further frame."""
    shares = {OURS: ours, KEPT: kept, THEIRS: 5.0}
    return [
        {"implementation": name, "num_frames": frames, "size": 64,
         "peak_rss_bytes": 10**8 + round(share * 3 * 64 * 64 * frames)}
        for frames in FRAMES for name, share in shares.items()
    ]  # fmt: skip


def test_growth_is_counted_in_shares_of_the_further_frames_own_bytes():
    assert growth(_rows(0.05, 1.0)) == {OURS: 0.05, KEPT: 1.0, THEIRS: 5.0}


@pytest.mark.parametrize(("ours", "kept", "passed"), [(0.05, 1.0, True), (0.2, 1.0, False), (0.0, 0.0, False)])
def test_the_measurement_passes_when_ours_stays_and_what_is_kept_shows(ours, kept, passed):
    assert passes(growth(_rows(ours, kept))) is passed
