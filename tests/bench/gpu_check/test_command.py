"""`mutoscope gpu-check`: what it says where there is no GPU, what it refuses, and its exit code."""

from __future__ import annotations

import ctypes
import json
from types import SimpleNamespace
from typing import Any

import pytest
from mutoscope.cli import main
from mutoscope_bench.gpu_check import command as gpu_check
from mutoscope_bench.gpu_check.part import PARTS
from mutoscope_engines.device import cuda as cuda_device
from mutoscope_engines.device.cuda import cuda_unavailable_because


@pytest.fixture
def parts_run(monkeypatch: pytest.MonkeyPatch) -> list[gpu_check.Check]:
    """Takes the place of running the parts; holds what was to run. The part "cpu" fails."""
    given: list[gpu_check.Check] = []

    def run(check: gpu_check.Check, tell: object) -> dict[str, object]:
        given.append(check)
        return {"parts": {part.name: {"status": "failed" if part.name == "cpu" else "passed"} for part in check.parts}}

    monkeypatch.setattr(gpu_check, "run", run)
    monkeypatch.setattr(gpu_check, "cuda_unavailable_because", lambda: None)
    return given


def test_without_a_gpu_it_says_so_in_one_line_and_exits_with_4(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu_check, "cuda_unavailable_because", lambda: "there is no NVIDIA driver; install one")
    assert main(["gpu-check", "--output", str(tmp_path / "report.json")]) == 4
    said = capsys.readouterr()
    assert said.out == "" and said.err == (
        "mutoscope: error: gpu-check needs an NVIDIA GPU: there is no NVIDIA driver; install one\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("found", [None, 12040, 13000])
def test_what_it_advises_without_a_gpu_is_no_backend_of_the_cpu(monkeypatch, capsys, found: int | None) -> None:
    """For it checks none. No driver, one for CUDA 12.4, and one that finds no GPU."""

    def version(out: Any) -> int:
        out.contents.value = found
        return 0

    def load(name: str) -> Any:
        if found is None:
            raise OSError(name)
        return SimpleNamespace(cuInit=lambda flags: 100, cuDriverGetVersion=version)

    monkeypatch.setattr(cuda_device, "find_spec", lambda name: object())
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert main(["gpu-check"]) == 4
    assert "onnxruntime" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--steps", "3"], "--steps must be more than 3: the first are not timed; got 3"),
        (["--time-limit", "0"], "--time-limit must be 1 or more seconds; got 0"),
        (["--precision", "bf61"], "there is no precision 'bf61'; did you mean bf16?"),
        (["--part", "devise"], "there is no part 'devise'; did you mean device?"),
    ],
)
def test_what_cannot_be_checked_is_refused(parts_run, capsys, given: list[str], told: str) -> None:
    assert main(["gpu-check", *given]) == 2
    assert told in capsys.readouterr().err and not parts_run


def test_all_parts_run_unless_some_are_named_by_the_whole_or_the_first_of_their_name(parts_run) -> None:
    assert main(["gpu-check"]) == 1  # the CPU failed
    assert main(["gpu-check", "--part", "device", "video:onnxruntime-cuda", "--height", "64"]) == 0
    assert [part.name for part in parts_run[0].parts] == list(PARTS)
    assert [part.name for part in parts_run[1].parts] == [
        "device", "video:onnxruntime-cuda:on", "video:onnxruntime-cuda:off",
    ]  # fmt: skip
    assert parts_run[1].spec["request"] == {"height": 64}


@pytest.mark.gpu
def test_the_whole_check_runs(tmp_path) -> None:
    if reason := cuda_unavailable_because():
        pytest.skip(reason)
    output = tmp_path / "report.json"
    main(["gpu-check", "--steps", "6", "--output", str(output)])
    failed = {
        name: facts for name, facts in json.loads(output.read_text())["parts"].items() if facts["status"] == "failed"
    }
    assert failed == {}
