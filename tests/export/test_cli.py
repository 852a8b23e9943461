"""What the command tells while it runs."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from mutoscope_export.cli import _Progress


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_terminal_that_takes_nothing_costs_no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(full, write_through=True))
        progress = _Progress()
        progress("reading the checkpoint")
        progress("write denoiser fp32")
