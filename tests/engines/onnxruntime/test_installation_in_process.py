"""What is said of an installation by the packages that are found. What a program then does: test_installation.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutoscope_engines.onnxruntime.installation import unusable_because

WORKS, GONE = "json", "a_module_that_is_not_there"


@pytest.fixture
def reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Why a module is unusable where these packages, and none else, are installed, each with this file."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def asked(module: str, **packages: str) -> str | None:
        for name, file in packages.items():
            info = tmp_path / f"{name}-1.2.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.2\n")
            (info / "RECORD").write_text(f"{file},,\n")
        return unusable_because(module, [name.replace("_", "-") for name in packages])

    return asked


def test_one_build_that_can_be_imported_is_no_reason_to_refuse(reason) -> None:
    assert reason(WORKS, onnxruntime="onnxruntime/__init__.py") is None


def test_two_builds_in_one_folder_are_refused_though_one_can_be_imported(reason) -> None:
    told = reason(WORKS, onnxruntime="onnxruntime/__init__.py", onnxruntime_gpu="onnxruntime/__init__.py")
    assert told is not None and "onnxruntime 1.2 and onnxruntime-gpu 1.2 are installed over each other" in told
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in told


@pytest.mark.parametrize(
    ("packages", "told"),
    [
        ({"onnxruntime": "onnxruntime/__init__.py"}, "onnxruntime==1.2 is damaged (No module named"),
        ({"onnxruntime": "onnxruntime-1.2.dist-info/METADATA"}, "only the empty package named onnxruntime"),
        ({}, "onnxruntime is not installed; run: pip install onnxruntime"),
    ],
)
def test_what_cannot_be_imported_is_told_with_the_command_that_mends_it(reason, packages, told: str) -> None:
    assert told in (reason(GONE, **packages) or "")
