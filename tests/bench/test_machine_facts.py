"""Energy, the page cache and noise, on files made by hand and on this machine."""

import os
import sys
from pathlib import Path

import psutil
import pytest
from mutoscope_bench import energy, page_cache
from mutoscope_bench.memory_trace import MOST_POINTS, MemoryTrace
from mutoscope_bench.noise import NoiseWatch

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def package(powercap: Path, name: str, microjoules: int) -> None:
    (powercap / name).mkdir(parents=True, exist_ok=True)
    (powercap / name / "energy_uj").write_text(f"{microjoules}\n")
    (powercap / name / "max_energy_range_uj").write_text("1000000000\n")


def test_energy_is_the_sum_of_the_packages_and_not_of_their_parts(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        package(tmp_path, name, 5_000_000)
    before = energy.counters(tmp_path)
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        package(tmp_path, name, 7_000_000)
    assert energy.difference_j(before, energy.counters(tmp_path), tmp_path) == pytest.approx(4.0)


def test_a_counter_that_began_anew_is_taken_at_its_range(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 999_000_000)
    before = energy.counters(tmp_path)
    package(tmp_path, "intel-rapl:0", 1_000_000)
    assert energy.difference_j(before, energy.counters(tmp_path), tmp_path) == pytest.approx(2.0)


def test_without_a_counter_energy_is_none_and_the_reason_is_said(tmp_path: Path) -> None:
    assert energy.difference_j({}, {}) is None
    if energy.why_not(tmp_path) is not None:  # a GPU would tell
        assert "no RAPL" in (energy.why_not(tmp_path) or "")


@linux
def test_files_leave_the_page_cache_or_the_reason_is_said(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(os.urandom(1 << 20))
    reason = page_cache.drop(tmp_path)
    assert reason is None or "page cache" in reason


def test_a_quiet_watch_has_no_reason_but_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert NoiseWatch().verdict({"ours": 0.01}).quiet


def test_runs_that_differ_and_a_busy_start_are_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    verdict = NoiseWatch().verdict({"ours": 0.5})
    assert not verdict.quiet
    assert any("load average" in reason for reason in verdict.reasons)
    assert any("ours" in reason for reason in verdict.reasons)


@linux
def test_a_trace_sees_memory_that_was_taken() -> None:
    trace = MemoryTrace()
    trace.start(os.getpid())
    held = bytearray(64 << 20)
    while not trace.points or trace.points[-1][1] < len(held):
        pass
    trace.stop()
    assert len(trace.points) <= MOST_POINTS
