"""Energy from counters as Linux keeps them, in files that a test writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutoscope_bench import energy


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
