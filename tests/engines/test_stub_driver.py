"""`CudaDevice` without a card: the real cuda-core over a driver of our own, in one process for all of its tests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.stub_driver.environment import with_stub_driver

HERE = Path(__file__).parent
TESTS = sorted((HERE / "stub_driver").glob("*on_the_stub.py"))
NAMES = [name for file in TESTS for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    environment = with_stub_driver(tmp_path_factory.mktemp("stub"))
    command = [sys.executable, "-m", "pytest", "-vv", "--tb=short", "--noconftest", "-p", "no:cacheprovider"]
    command += ["-p", "tests.engines.stub_driver.driver"]
    # Those that need a card, too: the stub is one, but for torch.
    chosen = [*map(str, TESTS), str(HERE / "device" / "test_cuda.py"), "-m", "gpu", "-k", "not test_torch"]
    done = subprocess.run([*command, *chosen], env=environment, capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_on_the_stub_driver(report: str, name: str) -> None:
    outcomes = re.findall(rf"::{name}(?:\[.*\])? (\w+)", report)
    assert outcomes and set(outcomes) == {"PASSED"}, report


def test_the_tests_for_a_card_pass_on_the_stub(report: str) -> None:
    outcomes = re.findall(r"device/test_cuda\.py::\w+ (\w+)", report)
    assert len(outcomes) == 3 and set(outcomes) == {"PASSED"}, report
