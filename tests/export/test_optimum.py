"""`optimum-cli export mutoscope`, run as a person runs it, beside the pinned transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mutoscope
import pytest
from mutoscope_export.errors import ExportError

pytest.importorskip("optimum.commands.optimum_cli", reason="optimum is not installed")
NAMESPACE = Path(__file__).parents[2] / "export/optimum"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "mutoscope", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_optimum_lists_the_command_with_its_arguments() -> None:
    shown = run("--help")
    assert shown.returncode == 0, shown.stderr
    assert all(name in shown.stdout for name in ("--model", "bundle", "mutoscope export"))


def test_a_checkpoint_becomes_a_bundle_that_generates(wan_checkpoint: Path, tmp_path: Path) -> None:
    exported = run("--model", str(wan_checkpoint), str(tmp_path / "bundle"), "--precision", "fp32", "--json")
    assert exported.returncode == 0, exported.stderr
    with mutoscope.Pipeline.load(tmp_path / "bundle", precision="fp32") as pipeline:
        video = pipeline.generate("a red circle", height=32, width=32, num_frames=5, num_inference_steps=1)
    assert video.frames.shape == (5, 32, 32, 3)


def test_a_refused_checkpoint_gives_the_exit_code_and_the_message_of_mutoscope(tmp_path: Path) -> None:
    refused = run("--model", str(tmp_path), str(tmp_path / "bundle"))
    assert refused.returncode == ExportError.exit_code
    assert "model_index.json" in refused.stderr


def test_the_folders_of_optimum_stay_a_namespace() -> None:
    assert [file.name for file in NAMESPACE.rglob("*.py")] == ["register_mutoscope.py"]
