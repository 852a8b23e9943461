"""Workers that fail, and peaks that are counted anew."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from mutoscope_bench.measuring import MeasurementError, Worker

WORKER = """
import json, os, sys
from mutoscope_bench.measuring import serve

spec = json.loads(sys.argv[2])

if spec["fails"] == "finds no file of the system":
    from pathlib import Path

    Path.exists = lambda path: False
    Path.read_text = lambda *_: (_ for _ in ()).throw(FileNotFoundError())

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


RESET = """
import numpy as np
from mutoscope_bench.measuring import reset_peak_rss
from mutoscope_engines.system.machine import peak_memory_bytes

large = np.ones(80_000_000, np.uint8)
with_large = peak_memory_bytes()
del large
reset_peak_rss()
print(with_large - peak_memory_bytes())
"""
ANONYMOUS = """
import sys, time
import numpy as np
from mutoscope_bench.measuring import PeakMemory

memory = PeakMemory()
memory.restart()
peaks = [memory.so_far()["peak_anonymous_bytes"]]
mapped = np.memmap(sys.argv[1], np.uint8, mode="r")
assert mapped.sum() == 0
time.sleep(0.2)
peaks.append(memory.so_far()["peak_anonymous_bytes"])
large = np.ones(80_000_000, np.uint8)
time.sleep(0.2)
peaks.append(memory.so_far()["peak_anonymous_bytes"])
print(peaks[1] - peaks[0], peaks[2] - peaks[1], large.size)
"""


def printed(code: str, *arguments: str) -> list[int]:
    """By a process of its own, because other tests leave threads and memory in this one."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux only")
def test_a_peak_before_the_reset_is_not_counted() -> None:
    assert printed(RESET)[0] > 60_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells files' pages from others")
def test_pages_of_files_are_not_counted_as_anonymous(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(80_000_000))
    by_file, by_array, _ = printed(ANONYMOUS, str(tmp_path / "file"))
    assert by_file < 20_000_000 and by_array > 60_000_000


def test_what_is_resident_and_its_peak_are_told_without_proc(small_worker: str) -> None:
    """As on Windows and macOS, whose processes psutil knows too."""
    pids: list[int] = []
    worker = Worker(small_worker, {"fails": "finds no file of the system"}, on_start=pids.append)
    answer = worker.run()
    assert answer["rss_bytes"] == pytest.approx(psutil.Process(pids[0]).memory_info().rss, rel=0.1)
    assert answer["peak_rss_bytes"] >= 0.9 * answer["rss_bytes"]
    worker.close()
