"""What counts as a noisy machine."""

from __future__ import annotations

import psutil
import pytest
from mutoscope_bench.noise_watch import NoiseWatch


def test_a_quiet_watch_has_no_reason_but_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert NoiseWatch().verdict({"ours": 0.01}).quiet


def test_runs_that_differ_and_a_busy_start_are_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    verdict = NoiseWatch().verdict({"ours": 0.5})
    assert not verdict.quiet
    assert any("load average" in reason for reason in verdict.reasons)
    assert any("ours" in reason for reason in verdict.reasons)
