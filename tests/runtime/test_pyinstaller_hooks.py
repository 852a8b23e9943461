"""What PyInstaller is told that it cannot find by itself. `.ci/versions newest` freezes a program with it."""

from __future__ import annotations

import runpy
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest
from mutoscope.builtin import bundle_path
from mutoscope.cli import COMMANDS
from mutoscope.conditions import CONDITIONS
from mutoscope.output import FORMATS
from mutoscope_engines.backends import BACKENDS

pytest.importorskip("PyInstaller")


@pytest.fixture(scope="module")
def hooks() -> dict[str, dict[str, list]]:
    """The variables of each hook, by the name of its package; as PyInstaller finds them."""
    [hook_dirs] = [
        entry.load() for entry in entry_points(group="pyinstaller40") if entry.value.startswith("mutoscope.")
    ]
    [folder] = map(Path, hook_dirs())
    return {file.stem.removeprefix("hook-"): runpy.run_path(str(file)) for file in folder.glob("hook-*.py")}


def test_every_file_of_the_built_in_bundle_keeps_its_place(hooks) -> None:
    places = {Path(source): Path(place) for source, place in hooks["mutoscope"]["datas"]}
    bundle = bundle_path()
    expected = [file for file in bundle.rglob("*") if file.is_file()]
    assert len(expected) > 5
    for file in expected:
        assert places[file] == "mutoscope/builtin/bundle" / file.parent.relative_to(bundle)


def test_what_is_imported_by_name_is_collected(hooks) -> None:
    commands = [path for path, _, extra in COMMANDS.values() if not extra]
    formats = [kind.writer for kind in FORMATS.values()]
    collected = hooks["mutoscope"]["hiddenimports"] + hooks["mutoscope_engines"]["hiddenimports"]
    backends = [path for path in BACKENDS.values() if path.startswith("mutoscope_engines.")]  # peers add their own
    for path in (*commands, *formats, *CONDITIONS.values(), *backends):
        assert path.partition(":")[0] in collected


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_the_plugin_that_openvino_runs_on_the_cpu_with_is_collected(hooks) -> None:
    assert "openvino_intel_cpu_plugin" in " ".join(
        Path(source).stem for source, _ in hooks["mutoscope_engines"]["binaries"]
    )
