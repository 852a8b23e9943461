"""Workers that fail, and peaks that are counted anew."""

import os
import sys

import numpy as np
import pytest
from mutoscope.bench.measuring import MeasurementError, measure_in_turn, peak_rss_bytes, reset_peak_rss

WORKER = """
import json, os, sys
from mutoscope.bench.measuring import serve

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
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
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
