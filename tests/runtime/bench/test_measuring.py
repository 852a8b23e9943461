"""Workers that fail, and peaks that are counted anew."""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from mutoscope.bench.measuring import MeasurementError, PeakMemory, Worker, _timed, reset_peak_rss
from mutoscope_engines.machine import peak_memory_bytes

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
            os.write(2, b"my last words")
            os._exit(3)
        return {"runs_so_far": runs}
    return run

serve(load)
"""


@pytest.fixture
def small_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "small_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return "small_worker"


def test_a_worker_has_run_once_when_it_is_there_and_runs_when_it_is_told(small_worker: str) -> None:
    pids: list[int] = []
    worker = Worker(small_worker, {"fails": "never"}, on_start=pids.append)
    assert worker.first["runs_so_far"] == 1 and worker.first["load_s"] >= 0
    assert [worker.run()["runs_so_far"] for _ in range(3)] == [2, 3, 4]
    assert pids[0] != os.getpid()
    worker.close()
    worker.close()


@pytest.mark.parametrize(("fails", "message"), [("raises", "no more"), ("ends", "exit code 3: my last words")])
def test_a_worker_that_fails_says_why(small_worker: str, fails: str, message: str) -> None:
    with tempfile.TemporaryFile() as log:
        worker = Worker(small_worker, {"fails": fails}, log=log)
        worker.run()
        with pytest.raises(MeasurementError, match=message):
            worker.run()


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux only")
def test_a_peak_before_the_reset_is_not_counted():
    large = np.ones(80_000_000, np.uint8)
    with_large = peak_memory_bytes()
    del large
    reset_peak_rss()
    assert peak_memory_bytes() < with_large - 60_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells files' pages from others")
def test_pages_of_files_are_not_counted_as_anonymous(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(80_000_000))
    memory = PeakMemory()
    memory.restart()
    before = memory.so_far()["peak_anonymous_bytes"]
    mapped = np.memmap(tmp_path / "file", np.uint8, mode="r")
    assert mapped.sum() == 0
    time.sleep(0.1)
    assert abs(memory.so_far()["peak_anonymous_bytes"] - before) < 20_000_000
    large = np.ones(80_000_000, np.uint8)
    time.sleep(0.1)
    assert memory.so_far()["peak_anonymous_bytes"] - before > 60_000_000
    assert large.size + mapped.size == 160_000_000  # both are still there


def test_what_is_resident_is_told_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows and macOS, whose processes psutil knows too."""
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert _timed(dict)["rss_bytes"] > 10_000_000
