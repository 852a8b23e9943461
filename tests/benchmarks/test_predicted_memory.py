"""The prediction for a GPU that is not here: within its limit, or refused in words."""

from __future__ import annotations

import json

import pytest
from mutoscope.builtin import bundle_path
from mutoscope_engines.session import Figures
from mutoscope_engines.tensorrt.backend import TensorRtBackend

from benchmarks import predicted_memory

pytest.importorskip("tensorrt_rtx", reason="its version is a part of every plan")
ARGUMENTS = ["--bundle", str(bundle_path()), "--target", "rtx40", "--precision", "fp32", "--num-frames", "9"]


def test_every_limit_has_a_plan_within_it_or_a_reason(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(TensorRtBackend, "figures", lambda self, graph, wanted: Figures(10**7, 0, 10**7, wanted.shapes))
    output = tmp_path / "predicted.json"
    assert predicted_memory.main([*ARGUMENTS, "--limits", "10MB", "70MB", "1GB", "--output", str(output)]) == 0
    small, medium, large = json.loads(output.read_text())["limits"].values()
    assert "encoding the prompt needs at least" in small["refused"]
    assert medium["peak_bytes"] <= 70 * 10**6 and not medium["keep_loaded"]
    assert large["peak_bytes"] > medium["peak_bytes"] and large["keep_loaded"]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["10MB", "70MB", "1GB"]


def test_without_engines_it_says_how_to_build_them(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MUTOSCOPE_CACHE", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert predicted_memory.main([*ARGUMENTS, "--limits", "1GB"]) == 0
    assert "mutoscope build" in capsys.readouterr().out
