"""A frozen program has no interpreter to start, and must not start itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mutoscope.cli import main
from mutoscope_bench.gpu_check import command as gpu_check
from mutoscope_bench.measuring import Worker
from mutoscope_bench.processes import import_seconds
from mutoscope_engines.cache.identity import EngineIdentity
from mutoscope_engines.errors import BackendUnavailableError
from mutoscope_engines.system.child_python import child_python
from mutoscope_engines.tensorrt.process import compile_in_process

ROOT = Path(__file__).parents[3]
ADVICE = "a frozen program has none; run it from a Mutoscope that is installed in Python"


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """As PyInstaller's bootloader marks it. Holds the processes that were started all the same."""
    started: list[object] = []
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    return started


def test_outside_of_a_frozen_program_it_is_this_interpreter() -> None:
    done = subprocess.run(child_python("-c", "import sys; print(sys.prefix)"), capture_output=True, text=True)
    assert done.stdout == f"{sys.prefix}\n"


def test_building_refuses_in_a_frozen_program(frozen: list[object], tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=ADVICE):
        compile_in_process(tmp_path, tmp_path, "tensorrt-rtx", EngineIdentity({}, "bf16", (89,), {}, "library", ()))
    assert not frozen


def test_measuring_refuses_in_a_frozen_program(frozen: list[object]) -> None:
    for start in (lambda: Worker("module", {}), lambda: import_seconds("import os")):
        with pytest.raises(BackendUnavailableError, match=ADVICE):
            start()
    assert not frozen


def test_gpu_check_refuses_in_a_frozen_program_and_writes_nothing(
    frozen: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "cuda_unavailable_because", lambda: None)
    assert main(["gpu-check", "--output", str(tmp_path / "report.json")]) == BackendUnavailableError.exit_code
    assert ADVICE in capsys.readouterr().err
    assert not frozen and list(tmp_path.iterdir()) == []


def test_no_other_file_starts_the_interpreter() -> None:
    sources = [path for folder in ("runtime", "engines", "export") for path in (ROOT / folder).rglob("*.py")]
    named = [path.name for path in sources if "sys.executable" in path.read_text(encoding="utf-8")]
    assert named == ["child_python.py"]
