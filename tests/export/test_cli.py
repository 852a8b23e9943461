"""What the command tells while it runs, and what it refuses before it reads anything."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mutoscope.bundle.bundle import Bundle
from mutoscope.errors import RequestError
from mutoscope_export import export
from mutoscope_export.cli import main
from mutoscope_export.errors import ExportError
from mutoscope_export.families.family import Reference
from mutoscope_export.families.policy import QuantizedLayers
from mutoscope_export.quantization.calibration import calibrate


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
        ("--calibration-prompts", "no-such-file", "the prompts in no-such-file cannot be read: .* name a text file"),
        ("--part-size", "4", "must be a size with its unit, such as 8GB"),
        ("--overwrit", "now", "there is no flag '--overwrit'; did you mean --overwrite[?]"),
    ],
)
def test_an_impossible_flag_is_refused_before_the_checkpoint_is_read(flag: str, value: str, refusal: str) -> None:
    with pytest.raises(RequestError, match=refusal):
        main(["no-such-checkpoint", "bundle", flag, value])


def test_help_waits_for_neither_torch_nor_onnx() -> None:
    code = (
        "import atexit, sys, mutoscope.cli\natexit.register(lambda: print(sorted(sys.modules)))\n"
        "mutoscope.cli.main(['export', '--help'])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    words = " ".join(told.split())
    assert "--part-size SIZE" in words and "(default: 8GB)" in words and "(default: fp32)" in words
    assert "'mutoscope_export.options'" in told
    for heavy in ("torch", "onnx_ir", "onnx", "diffusers", "transformers"):
        assert f"'{heavy}'" not in told


def test_what_the_export_refuses_is_told_in_flags(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(RequestError, match="is already a bundle; pass --overwrite to replace it"):
        main(["no-such-checkpoint", str(tmp_path)])


def test_a_calibration_that_cannot_be_done_names_the_flag_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    def exported(*_: object, **__: object) -> Bundle:
        idle = Reference("denoiser_low", torch.nn.Identity(), [lambda: None], lambda calls: [])
        calibrate(idle, QuantizedLayers((), ()))
        raise AssertionError("it was calibrated")

    monkeypatch.setattr(export, "export_checkpoint", exported)
    with pytest.raises(ExportError, match="never reach the denoiser_low of the checkpoint; raise --calibration-steps"):
        main(["some/model", "bundle"])
