"""`optimum-cli export mutoscope`, run as a person runs it, beside the pinned transformers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import mutoscope
import pytest
from mutoscope_export.errors import ExportError

pytest.importorskip("optimum.commands.optimum_cli", reason="optimum is not installed")
DISTRIBUTION = Path(__file__).parents[2] / "distributions/optimum_mutoscope"
INSTALLED = Path(str(distribution("optimum").locate_file("optimum")))

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the command from a copy of Optimum with our file in its folder, as pip puts it there."""
    site = tmp_path_factory.mktemp("site")
    for folder in (INSTALLED, DISTRIBUTION / "optimum"):
        shutil.copytree(folder, site / "optimum", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "mutoscope", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return run


def test_optimum_lists_the_command_with_its_arguments(run: Run) -> None:
    shown = run("--help")
    assert shown.returncode == 0, shown.stderr
    assert all(name in shown.stdout for name in ("--model", "bundle", "mutoscope export"))


def test_a_checkpoint_becomes_a_bundle_that_generates(run: Run, least_checkpoint: Path, tmp_path: Path) -> None:
    exported = run("--model", str(least_checkpoint), str(tmp_path / "bundle"), "--precision", "fp32", "--json")
    assert exported.returncode == 0, exported.stderr
    with mutoscope.Pipeline.load(tmp_path / "bundle", precision="fp32") as pipeline:
        video = pipeline.generate("a red circle", height=32, width=32, num_frames=5, num_inference_steps=1)
    assert video.frames.shape == (5, 32, 32, 3)


def test_a_refused_checkpoint_gives_the_exit_code_and_the_message_of_mutoscope(run: Run, tmp_path: Path) -> None:
    refused = run("--model", str(tmp_path), str(tmp_path / "bundle"))
    assert refused.returncode == ExportError.exit_code
    assert "model_index.json" in refused.stderr


def test_the_folders_of_optimum_stay_a_namespace() -> None:
    assert [file.name for file in DISTRIBUTION.rglob("*.py")] == ["register_mutoscope.py"]


def test_mutoscope_itself_has_no_package_of_that_name() -> None:
    assert not any(file.parts[0] == "optimum" for file in distribution("mutoscope").files or ())
