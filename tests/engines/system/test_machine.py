"""What a process may use: never more than the machine has, and never more than its limits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from mutoscope_engines.system import control_groups, machine


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda process: list(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)


@pytest.mark.parametrize(("limit", "cores"), [(3.0, 3), (2.5, 2), (0.5, 1), (99.0, 8), (None, 8)])
@pytest.mark.usefixtures("eight_cores")
def test_a_quota_counts_in_whole_cores(monkeypatch: pytest.MonkeyPatch, limit: float | None, cores: int) -> None:
    monkeypatch.setattr(control_groups, "cpu_limit", lambda: limit)
    assert machine.usable_cores() == cores


@pytest.mark.usefixtures("eight_cores")
def test_where_a_process_is_bound_to_no_cores_all_are_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_groups, "cpu_limit", lambda: None)
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda process: [])  # Windows, with more than 64
    assert machine.usable_cores() == 16
    monkeypatch.delattr(psutil.Process, "cpu_affinity")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.usable_cores() == 16
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.usable_cores() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to cores")
def test_cores_are_those_that_the_process_is_bound_to() -> None:
    bound_to = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(bound_to)})
        assert machine.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, bound_to)


@pytest.mark.parametrize("limit", [None, 4096, 1 << 60])
def test_memory_is_the_least_of_the_machine_and_the_limit(monkeypatch: pytest.MonkeyPatch, limit: int | None) -> None:
    monkeypatch.setattr(control_groups, "memory_limit_bytes", lambda: limit)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.memory_bytes() == (4096 if limit == 4096 else physical)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n\nflags\t\t: other\n", {"fpu", "avx2", "avx512f"}),
        ("processor\t: 0\nFeatures\t: asimd bf16\n", {"asimd", "bf16"}),  # Arm
        ("processor\t: 0\n", set()),
        (None, set()),
    ],
)
def test_the_flags_of_the_cpu_are_those_of_its_first_core(tmp_path: Path, text: str | None, flags: set[str]) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert machine.cpu_flags(tmp_path / "cpuinfo") == flags


def test_where_linux_does_not_tell_the_peak_is_what_the_system_counts(tmp_path: Path) -> None:
    resident = psutil.Process().memory_info().rss
    assert machine.peak_memory_bytes(tmp_path / "none") > resident / 2
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t   1234 kB\n")
    assert machine.peak_memory_bytes(tmp_path / "status") == 1234 * 1024


def test_the_cpu_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC 7763\n\nmodel name\t: AMD EPYC 7763\n")
    assert machine.cpu_model(tmp_path / "cpuinfo") == "AMD EPYC 7763"
    assert machine.cpu_model(tmp_path / "none")


def test_the_peak_of_memory_is_this_processs_and_not_that_of_the_one_that_started_it() -> None:
    """Linux carries `ru_maxrss` over to the new process, so that a small one reports what its parent held."""
    ballast = np.ones(400 * 2**20, np.uint8)
    code = """
from mutoscope_engines.system.machine import peak_memory_bytes
before = peak_memory_bytes()
held = bytearray(100 * 2**20)
del held
print(before, peak_memory_bytes() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, growth = map(int, run.stdout.split())
    assert before < 100 * 2**20 < len(ballast)
    assert growth == pytest.approx(100 * 2**20, rel=0.1)
