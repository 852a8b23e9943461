"""Parts in processes of their own: one that fails, dies or hangs hides nothing of the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mutoscope.errors import OutputError
from mutoscope_bench.gpu_check import runner
from mutoscope_bench.gpu_check.part import PARTS, Part
from mutoscope_bench.gpu_check.runner import Check, run

from tests.engines.stub_driver.environment import with_stub_driver


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """Parts that pass, cannot run, fail, find a fault among several checks, die, hang, and print."""
    module = tmp_path / "parts_of_a_test.py"
    module.write_text(
        "import os, sys, time\n"
        "from mutoscope_bench.gpu_check.part import NotRunError\n"
        "def passes(spec): return {'seen': spec['own'] + spec['request']['height']}\n"
        "def cannot(spec): raise NotRunError('not installed')\n"
        "def fails(spec): raise ValueError('other values')\n"
        "def checks(spec): return {'checks': {'one': 'passed', 'other': 'OSError: no'}, 'figure': 3}\n"
        "def dies(spec): print('last words', file=sys.stderr, flush=True); os.abort()\n"
        "def hangs(spec): print('still here', flush=True); time.sleep(60)\n"
        "def prints(spec): print('{'); return {}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)  # the workers have the path of this process
    names = ("passes", "cannot", "fails", "checks", "dies", "hangs", "prints")
    return [Part(name, "", f"parts_of_a_test:{name}", 2 if name == "hangs" else 60, {"own": 1}) for name in names]


def test_each_part_tells_its_own_and_the_file_is_written_after_every_one(parts, tmp_path, monkeypatch) -> None:
    output, told = tmp_path / "report.json", []

    def tell(name: str, facts: object) -> None:
        told.append(name)
        assert list(json.loads(output.read_text())["parts"]) == told

    result = run(Check(parts, {"request": {"height": 64}}, None, output), tell)
    assert json.loads(output.read_text()) == result and told == [part.name for part in parts]
    found = result["parts"]
    assert all(facts.pop("seconds") >= 0 for facts in found.values())
    assert found["passes"] == {"status": "passed", "seen": 65}
    assert found["cannot"] == {"status": "not run", "reason": "not installed"}
    assert found["fails"]["status"] == "failed" and found["fails"]["reason"] == "ValueError: other values"
    assert found["fails"]["traceback"][-1] == "parts_of_a_test.py:5 fails"
    assert found["checks"] == {
        "status": "failed", "reason": "other", "checks": {"one": "passed", "other": "OSError: no"}, "figure": 3,
    }  # fmt: skip
    assert found["dies"]["reason"] == "it ended with code -6" and "last words" in found["dies"]["said"]
    assert found["hangs"]["status"] == "failed" and found["hangs"]["reason"] == "it took longer than 2 s"
    assert found["hangs"]["said"] in (["still here"], [])  # it may have been slow to begin
    assert found["prints"] == {"status": "passed"}
    assert {"cpu", "gpus", "packages"} <= set(result["machine"])
    assert result["machine"]["packages"].keys() <= set(runner.GPU_PACKAGES)


def test_a_file_that_cannot_be_written_is_told_before_anything_runs(parts, tmp_path) -> None:
    with pytest.raises(OutputError, match="name another file with --output"):
        run(Check(parts, {"request": {}}, None, tmp_path / "missing" / "report.json"), lambda *told: pytest.fail("ran"))


def test_card_and_device_are_told_on_the_stub_driver_and_what_lacks_a_library_is_not_run(tmp_path) -> None:
    environment = with_stub_driver(tmp_path)
    output = tmp_path / "report.json"
    command = [sys.executable, "-m", "mutoscope", "gpu-check", "--output", str(output), "--part"]
    names = ["card", "device", "session:onnxruntime-cuda"]
    done = subprocess.run([*command, *names], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())["parts"]
    assert found["card"]["cuda"] == "13.0" and found["card"]["compute_capability"] == 89
    assert found["card"]["total_bytes"] == 16 * 2**30
    assert set(found["device"]["checks"].values()) == {"passed"} and len(found["device"]["checks"]) == 7
    assert found["session:onnxruntime-cuda"]["status"] == "not run"
    assert "is the build for CPUs" in done.stdout


def test_every_part_names_a_function_that_is_there() -> None:
    from importlib import import_module

    for part in PARTS.values():
        module, _, name = part.function.partition(":")
        assert callable(getattr(import_module(module), name)) and part.limit_s > 0
