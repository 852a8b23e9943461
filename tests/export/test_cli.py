"""What the command tells while it runs, and what it refuses before it reads anything."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from mutoscope.errors import RequestError
from mutoscope_export.cli import _Progress, main


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_terminal_that_takes_nothing_costs_no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(full, write_through=True))
        progress = _Progress()
        progress("reading the checkpoint")
        progress("write denoiser fp32")


@pytest.mark.parametrize(
    ("flag", "value", "refusal"),
    [
        ("--precision", "bf61", "there is no precision 'bf61'; did you mean bf16[?] There are: fp32, int8, "),
        ("--calibration-steps", "many", "must be a whole number; got 'many'"),
        ("--calibration-size", "big", "must be height x width x frames, such as 480x832x81; got 'big'"),
        ("--part-size", "4", "must be a size with its unit, such as 8GB"),
        ("--overwrit", "now", "there is no flag '--overwrit'; did you mean --overwrite[?]"),
    ],
)
def test_an_impossible_flag_is_refused_before_the_checkpoint_is_read(flag: str, value: str, refusal: str) -> None:
    with pytest.raises(RequestError, match=refusal):
        main(["no-such-checkpoint", "bundle", flag, value])
