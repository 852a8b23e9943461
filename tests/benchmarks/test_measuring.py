"""Workers that fail, peaks that are counted anew, and what decides whether memory grew."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.measuring import MeasurementError, measure_in_turn, peak_rss_bytes, reset_peak_rss

from benchmarks.decode_memory import FRAMES, KEPT, OURS, THEIRS, growth, passes

WORKER = """
import json, os, sys
from benchmarks.measuring import serve

spec = json.loads(sys.argv[2])

def load():
    runs = 0
    def run():
        nonlocal runs
        runs += 1
        if runs > 2 and spec["fails"] == "raises":
            raise ValueError("no more")
        if runs > 2 and spec["fails"] == "ends":
            os._exit(3)
        return {"runs_so_far": runs}
    return run

serve(load)
"""


def test_a_worker_that_fails_in_a_round_does_not_end_the_others(tmp_path, monkeypatch):
    (tmp_path / "small_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]))
    specs = {name: {"fails": name} for name in ("raises", "never", "ends")}
    measured = measure_in_turn("small_worker", specs, rounds=3)
    assert list(measured) == list(specs)
    assert [answer["runs_so_far"] for answer in measured["never"][1]] == [2, 3, 4]
    assert isinstance(measured["raises"], MeasurementError) and "no more" in str(measured["raises"])
    assert isinstance(measured["ends"], MeasurementError) and "exit code 3" in str(measured["ends"])


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux only")
def test_a_peak_before_the_reset_is_not_counted():
    large = np.ones(80_000_000, np.uint8)
    with_large = peak_rss_bytes()
    del large
    reset_peak_rss()
    assert peak_rss_bytes() < with_large - 60_000_000


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
