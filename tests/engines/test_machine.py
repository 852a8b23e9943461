"""What a process may use: never more than the machine has, and never more than its limits."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mutoscope_engines import machine


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    return lambda name, text: (tmp_path / name).write_text(text)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("300000 100000\n", 3),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("9900000 100000", 8),
        ("max 100000", 8),
        ("", 8),
    ],
)
def test_a_quota_counts_in_whole_cores(limit, quota: str, cores: int) -> None:
    limit("cpu.max", quota)
    assert machine.usable_cores() == cores


def test_without_affinity_or_limits_all_cores_are_usable(limit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert machine.usable_cores() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.usable_cores() == 1


def test_memory_is_the_least_of_the_machine_and_the_limit(limit) -> None:
    physical = machine.memory_bytes()
    assert physical == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for text, expected in (("max\n", physical), ("4096\n", 4096), (str(2 * physical), physical)):
        limit("memory.max", text)
        assert machine.memory_bytes() == expected


def test_the_peak_of_memory_is_this_processs_and_not_that_of_the_one_that_started_it() -> None:
    """Linux carries `ru_maxrss` over to the new process, so that a small one reports what its parent held."""
    ballast = np.ones(400 * 2**20, np.uint8)
    code = """
from mutoscope_engines.machine import peak_memory_bytes
before = peak_memory_bytes()
held = bytearray(100 * 2**20)
del held
print(before, peak_memory_bytes() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, growth = map(int, run.stdout.split())
    assert before < 100 * 2**20 < len(ballast)
    assert growth == pytest.approx(100 * 2**20, rel=0.1)
