"""The stub driver for a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "libcuda.c"


def with_stub_driver(folder: Path) -> dict[str, str]:
    """The environment of a process whose NVIDIA driver is the stub, compiled into this folder; skips where it cannot
    be."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler called cc")
    if find_spec("cuda") is None or find_spec("cuda.core") is None:
        pytest.skip("cuda-core is not installed")
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*command, "-o", str(folder / "libcuda.so.1"), str(SOURCE)], check=True)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
