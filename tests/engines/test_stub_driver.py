"""`CudaDevice` without a card: the real cuda-core over a driver of our own, in one process for all of its tests."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCE, TESTS = HERE / "stub_driver" / "libcuda.c", HERE / "stub_driver" / "on_the_stub.py"
NAMES = re.findall(r"^def (test_\w+)", TESTS.read_text(), re.MULTILINE)


def compile_stub(folder: Path) -> dict[str, str]:
    """The environment of a process whose NVIDIA driver is the stub; skips without a compiler or cuda-core."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler called cc")
    if find_spec("cuda") is None or find_spec("cuda.core") is None:
        pytest.skip("cuda-core is not installed")
    library = folder / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*command, "-o", str(library), str(SOURCE)], check=True)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    environment = compile_stub(tmp_path_factory.mktemp("stub"))
    command = [sys.executable, "-m", "pytest", "-vv", "--tb=short", "--noconftest", "-p", "no:cacheprovider"]
    # Those that need a card, too: the stub is one, but for torch.
    chosen = [str(TESTS), str(HERE / "test_cuda_device.py"), "-m", "gpu", "-k", "not torch"]
    done = subprocess.run([*command, *chosen], env=environment, capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_on_the_stub_driver(report: str, name: str) -> None:
    outcomes = re.findall(rf"::{name}(?:\[.*\])? (\w+)", report)
    assert outcomes and set(outcomes) == {"PASSED"}, report


def test_the_tests_for_a_card_pass_on_the_stub(report: str) -> None:
    outcomes = re.findall(r"test_cuda_device\.py::\w+ (\w+)", report)
    assert len(outcomes) == 3 and set(outcomes) == {"PASSED"}, report
