"""An ONNX Runtime that is absent, damaged or installed twice is told in one line, wherever it is met.

The installation is the one that runs the tests, as links in a new folder, so that what is missing there is missing
nowhere else.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import mutoscope
import mutoscope_bench
import mutoscope_engines
import mutoscope_export
import pytest
from mutoscope.builtin import bundle_path
from mutoscope_engines.onnxruntime.installation import FOLDER

INSTALLED = Path(str(distribution("onnxruntime").locate_file("")))
VERSION = distribution("onnxruntime").version
PACKAGES = (mutoscope, mutoscope_bench, mutoscope_engines, mutoscope_export)
OURS = [str(Path(str(package.__file__)).parents[1]) for package in PACKAGES]
PROMPT = "a red circle moving right on a black background"
Damage = Callable[[Path], None]


def record(folder: Path, name: str, version: str, file: str) -> None:
    """Lets a distribution be installed into `folder`, with this one file."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{file},,\n")


def absent(site: Path) -> None:
    pass


def emptied(site: Path) -> None:
    """As removing onnxruntime-gpu leaves it, whose files were also those of onnxruntime."""
    (site / FOLDER / "capi").mkdir(parents=True)
    record(site, "onnxruntime", VERSION, f"{FOLDER}/__init__.py")


def cut_short(site: Path) -> None:
    """As a full disk leaves it."""
    for folder in ("", "capi"):
        (site / FOLDER / folder).mkdir(parents=True)
        for entry in (INSTALLED / FOLDER / folder).iterdir():
            if entry.is_file():
                (site / FOLDER / folder / entry.name).symlink_to(entry)
    [library] = (site / FOLDER / "capi").glob("onnxruntime_pybind11_state.*")
    library.unlink()
    library.write_bytes(b"\x7fELF")
    record(site, "onnxruntime", VERSION, f"{FOLDER}/__init__.py")


def doubled(site: Path) -> None:
    (site / FOLDER).symlink_to(INSTALLED / FOLDER)
    record(site, "onnxruntime", VERSION, f"{FOLDER}/__init__.py")
    record(site, "onnxruntime-gpu", "1.31.0", f"{FOLDER}/__init__.py")


def broken_by(statement: str, site: Path) -> None:
    (site / FOLDER).mkdir()
    (site / FOLDER / "__init__.py").write_text(statement)
    record(site, "onnxruntime", VERSION, f"{FOLDER}/__init__.py")


def unloadable(site: Path) -> None:
    """As where a system library that it loads by itself is missing."""
    broken_by("import ctypes; ctypes.CDLL('libgone.so.1')", site)


def half_removed(site: Path) -> None:
    """As where a module of it is left without its content."""
    broken_by("import sys; sys.gone", site)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(damage: Damage, *command: str) -> subprocess.CompletedProcess[str]:
        site = tmp_path / "site-packages"
        site.mkdir()
        for entry in INSTALLED.iterdir():
            if not entry.name.startswith(FOLDER):
                (site / entry.name).symlink_to(entry)
        damage(site)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*OURS, str(site)])}
        return subprocess.run(
            [sys.executable, "-S", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )

    return run


def said(damage: Damage) -> tuple[str, ...]:
    """The cause and the next step that belong to it."""
    return {
        absent: ("onnxruntime is not installed", "pip install onnxruntime"),
        stand_in: (
            "onnxruntime-gpu is not installed",
            "pip install --force-reinstall --no-deps onnxruntime-gpu",
        ),
        emptied: (
            f"onnxruntime=={VERSION} is damaged",
            f"pip install --force-reinstall --no-deps onnxruntime=={VERSION}",
        ),
        cut_short: (f"onnxruntime=={VERSION} is damaged", "file too short", "pip install --force-reinstall"),
        unloadable: (f"onnxruntime=={VERSION} is damaged", "libgone.so.1", "pip install --force-reinstall"),
        half_removed: (f"onnxruntime=={VERSION} is damaged", "'gone'", "pip install --force-reinstall"),
        doubled: (
            f"onnxruntime {VERSION} and onnxruntime-gpu 1.31.0 are installed over each other",
            "pip uninstall -y onnxruntime onnxruntime-gpu",
        ),
    }[damage]


def stand_in(site: Path) -> None:
    """`distributions/onnxruntime_gpu` without the build for GPUs, as removing that leaves it: it has the name of the
    build for CPUs and no file of its own. pip takes onnxruntime for installed."""
    record(site, "onnxruntime", "1.31.1+gpu", "onnxruntime-1.31.1+gpu.dist-info/METADATA")


DAMAGES = [absent, stand_in, emptied, cut_short, doubled, unloadable, half_removed]
damages = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)


@damages
def test_making_a_video_tells_it_in_one_line(run, damage: Damage) -> None:
    done = run(damage, "-m", "mutoscope", "generate", PROMPT, "--backend", "onnxruntime", "-o", "x.npy")
    assert done.returncode == mutoscope.BackendUnavailableError.exit_code
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert all(part in done.stderr for part in said(damage))


def test_a_plan_tells_it_too(run) -> None:
    done = run(emptied, "-m", "mutoscope", "generate", PROMPT, "--backend", "onnxruntime", "--explain")
    assert done.returncode == mutoscope.BackendUnavailableError.exit_code
    assert done.stderr.count("\n") == 1 and all(part in done.stderr for part in said(emptied))


def test_bench_that_has_nothing_else_to_measure_tells_it_too(run) -> None:
    done = run(emptied, "-m", "mutoscope", "bench", "--quick", "--backend", "onnxruntime")
    assert done.returncode == mutoscope.RequestError.exit_code  # as with every backend that is not there
    assert done.stderr.count("\n") == 1 and all(part in done.stderr for part in said(emptied))


@damages
def test_doctor_says_it_of_both_backends_and_ends_well(run, damage: Damage) -> None:
    done = run(damage, "-m", "mutoscope", "doctor")
    assert (done.returncode, done.stderr) == (0, "")
    [cuda, cpu] = [line for line in done.stdout.splitlines() if said(damage)[0] in line]
    assert "onnxruntime-cuda" in cuda and all(part in line for line in (cuda, cpu) for part in said(damage))


@damages
def test_the_python_api_raises_it(run, damage: Damage) -> None:
    code = """
import mutoscope
try:
    mutoscope.Pipeline.load(backend="onnxruntime")
except mutoscope.BackendUnavailableError as error:
    print(error)
"""
    done = run(damage, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(part in done.stdout for part in said(damage))


@damages
def test_export_tells_it_before_it_opens_the_checkpoint(run, damage: Damage) -> None:
    done = run(damage, "-m", "mutoscope", "export", "no-checkpoint", "bundle")
    assert done.returncode == mutoscope.BackendUnavailableError.exit_code
    assert done.stderr.count("\n") == 1 and all(part in done.stderr for part in said(damage))


def test_one_that_only_has_the_name_beside_the_build_for_gpus_is_not_two(run) -> None:
    """`distributions/onnxruntime-gpu` is installed so."""

    def named(site: Path) -> None:
        (site / FOLDER).symlink_to(INSTALLED / FOLDER)
        stand_in(site)
        record(site, "onnxruntime-gpu", "1.31.1", f"{FOLDER}/__init__.py")

    video = "x.npy"
    size = ("--height", "32", "--width", "32", "--num-frames", "1", "--num-inference-steps", "1")
    done = run(
        named, "-m", "mutoscope", "generate", PROMPT, "--bundle", str(bundle_path()), *size, "-o", video, "--quiet"
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "openvino is not installed"), ("import a_file_that_is_gone", "openvino is damaged (No module named")],
)
def test_an_openvino_without_its_files_is_told_in_one_line(run, content: str | None, told: str) -> None:
    def damaged_openvino(site: Path) -> None:
        (site / FOLDER).symlink_to(INSTALLED / FOLDER)
        (site / "openvino").unlink(missing_ok=True)
        (site / "openvino").mkdir()
        if content is not None:
            (site / "openvino" / "__init__.py").write_text(content)

    done = run(
        damaged_openvino, "-m", "mutoscope", "generate", PROMPT, "--backend", "openvino", "-o", "x.npy", "--quiet"
    )
    assert done.returncode == mutoscope.BackendUnavailableError.exit_code
    assert done.stderr.count("\n") == 1 and told in done.stderr
