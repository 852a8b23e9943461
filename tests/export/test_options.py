"""The options of an export mean the same in Python and on the command line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from mutoscope.commands.arguments import Parser, add_fields, flag_of, given
from mutoscope.errors import RequestError
from mutoscope_export.options import ExportOptions


def from_flags(*argv: str) -> ExportOptions:
    parser = Parser("export", "")
    add_fields(parser, ExportOptions)
    return ExportOptions(**given(parser.parse(argv), ExportOptions))


def test_without_flags_the_defaults_of_python_hold() -> None:
    assert from_flags() == ExportOptions()
    assert (ExportOptions().precision, ExportOptions().part_size) == (("fp32",), 8_000_000_000)


def test_every_option_has_the_flag_that_users_know() -> None:
    assert {flag_of(field.name) for field in fields(ExportOptions)} == {
        "--precision", "--overwrite", "--compact", "--part-size", "--calibration-prompts", "--calibration-clips",
        "--calibration-size", "--calibration-steps", "--transformer", "--vae", "--text-encoder", "--lora", "--lora-2",
        "--lora-inputs", "--video-input",
    }  # fmt: skip


def test_text_of_the_command_line_becomes_values_of_python(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\nan owl in the café\n", "utf-8")
    arguments = ["--precision", "fp32", "fp8", "--overwrite", "--compact", "--part-size", "4GB"]
    arguments += ["--calibration-prompts", str(prompts), "--calibration-size", "480x832x81", "--calibration-steps", "9"]
    arguments += ["--calibration-clips", "fox.png", "owl.mp4"]
    assert from_flags(*arguments) == ExportOptions(
        precision=("fp32", "fp8"),
        overwrite=True,
        compact=True,
        part_size=4_000_000_000,
        calibration_prompts=("a fox", "an owl in the café"),
        calibration_clips=("fox.png", "owl.mp4"),
        calibration_size=(480, 832, 81),
        calibration_steps=9,
    )


def test_prompts_that_are_no_text_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "prompts.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match=r"cannot be read: 'utf-8' codec .*; name a text file with one"):
        from_flags("--calibration-prompts", str(tmp_path / "prompts.bin"))
