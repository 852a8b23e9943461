"""What the command tells while it runs, and what it refuses before it reads anything."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from mutoscope.bundle.bundle import Bundle
from mutoscope.errors import RequestError
from mutoscope_export import export
from mutoscope_export.cli import main


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudoterminals")
def test_a_terminal_that_is_closed_meanwhile_costs_no_export(
    wan_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = os.openpty()

    def exported(*_: object, on_progress: Any, **__: object) -> Bundle:
        on_progress("open checkpoint")
        assert os.read(ours, 100).endswith(b" s  open checkpoint\r\n")
        os.close(ours)
        on_progress("write denoiser fp32")
        on_progress("publish")
        return Bundle.open(wan_bundle, verify=False)

    monkeypatch.setattr(export, "export_checkpoint", exported)
    with open(theirs, "wb", buffering=0) as terminal:
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(terminal, write_through=True))
        assert main(["some/model", "bundle"]) == 0
    assert capsys.readouterr().out.endswith(f"{wan_bundle}\n")


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
