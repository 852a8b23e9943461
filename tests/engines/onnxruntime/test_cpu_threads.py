"""Runs from every thread there is, for as long as there is one."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from mutoscope_engines.backends import load_backend
from mutoscope_engines.session import SessionOptions
from onnx import TensorProto, helper

LATE = """
import atexit, sys, threading, time
from pathlib import Path
import numpy as np
from mutoscope_engines.backends import load_backend
from mutoscope_engines.session import SessionOptions

session = load_backend("onnxruntime").open(Path(sys.argv[1]), SessionOptions(threads=1))

def run():
    if sys.argv[2] == "thread":
        threading.main_thread().join()
    print(session.run({"x": np.ones(4, np.float32)})["y"].numpy().tolist())

threading.Thread(target=run).start() if sys.argv[2] == "thread" else atexit.register(run)
"""


@pytest.fixture
def negation(make_graph) -> Path:
    node = helper.make_node("Neg", ["x"], ["y"])
    return make_graph([node], [("x", TensorProto.FLOAT, [4])], [("y", TensorProto.FLOAT, [4])])


@pytest.mark.parametrize("when", ["thread", "atexit"])
def test_a_graph_runs_when_the_main_thread_has_ended(negation: Path, when: str) -> None:
    done = subprocess.run([sys.executable, "-c", LATE, negation, when], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("[-1.0, -1.0, -1.0, -1.0]\n", "", 0)


def test_a_graph_runs_where_no_further_thread_can_be_started(negation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from Python 3.12 on while the interpreter ends."""

    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with load_backend("onnxruntime").open(negation, SessionOptions(threads=1)) as session:
        monkeypatch.setattr(threading.Thread, "start", refused)
        assert session.run({"x": np.ones(4, np.float32)})["y"].numpy().tolist() == [-1.0] * 4
