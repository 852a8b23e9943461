"""What ONNX Runtime says, in this project's words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from mutoscope_engines.backends import load_backend
from mutoscope_engines.errors import BackendUnavailableError, GraphError, OutOfMemoryError
from mutoscope_engines.session import SessionOptions
from onnx import TensorProto, helper

FLOAT, INT64, BFLOAT16, DOUBLE = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BFLOAT16, TensorProto.DOUBLE


def open_graph(path: Path):
    return load_backend("onnxruntime").open(path, SessionOptions(threads=1))


def test_running_out_of_memory_says_what_to_lower_and_prints_nothing(make_graph, capfd) -> None:
    expand = helper.make_node("Expand", ["x", "shape"], ["y"])
    graph = make_graph([expand], [("x", FLOAT, [1]), ("shape", INT64, [2])], [("y", FLOAT, ["a", "b"])])
    complaint = r"out of memory while running.*close other programs"
    with open_graph(graph) as session, pytest.raises(OutOfMemoryError, match=complaint):
        session.run({"x": np.zeros(1, np.float32), "shape": np.array([2**25, 2**25])})
    assert capfd.readouterr() == ("", "")


def test_a_precision_that_the_cpu_lacks_is_a_matter_of_the_backend(make_graph) -> None:
    graph = make_graph(
        [helper.make_node("MatMul", ["x", "x"], ["y"])], [("x", BFLOAT16, [4, 4])], [("y", BFLOAT16, [4, 4])]
    )
    with pytest.raises(BackendUnavailableError, match=r"cannot run this on the CPU.*MatMul.*another precision"):
        open_graph(graph)


MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
from mutoscope_engines.backends import load_backend
from mutoscope_engines.session import SessionOptions

def anonymous_bytes():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

options = {"packed": {}, "once": {"runs_once": True}, "streamed": {"streamed_weight_bytes": 1}}[sys.argv[2]]
before = anonymous_bytes()
with load_backend("onnxruntime").open(Path(sys.argv[1]), SessionOptions(threads=1, **options)) as session:
    y = session.run({"x": np.ones((2, 4096), np.float32)})["y"].numpy()
    print(anonymous_bytes() - before, y.sum())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is a figure of Linux's")
def test_a_graph_that_runs_once_or_streams_leaves_its_weights_in_their_file(tmp_path: Path) -> None:
    """Packed, they are a copy that the system cannot take back."""
    weights = np.full((4096, 4096), 0.5, np.float32)  # 64 MiB
    stored = onnx.numpy_helper.from_array(weights, "w")
    values = [helper.make_tensor_value_info(name, FLOAT, ["n", 4096]) for name in "xy"]
    product = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [stored])
    model = helper.make_model(product, ir_version=10, opset_imports=[helper.make_opsetid("", 23)])
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True)
    taken = {}
    for way in ("packed", "once", "streamed"):
        command = [sys.executable, "-c", MEMORY, str(tmp_path / "model.onnx"), way]
        found, total = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert float(total) == 2 * 4096 * 2048
        taken[way] = int(found)
    assert taken["packed"] > weights.nbytes > 4 * max(taken["once"], taken["streamed"])


def test_sizes_that_do_not_fit_inside_the_graph_are_a_matter_of_the_graph(make_graph) -> None:
    add = helper.make_node("Add", ["a", "b"], ["y"])
    graph = make_graph([add], [("a", FLOAT, ["m"]), ("b", FLOAT, ["n"])], [("y", FLOAT, ["o"])])
    with open_graph(graph) as session, pytest.raises(GraphError, match="while running"):
        session.run({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)})


def test_a_type_that_no_bundle_has_is_refused(make_graph) -> None:
    graph = make_graph([helper.make_node("Neg", ["x"], ["y"])], [("x", DOUBLE, [4])], [("y", DOUBLE, [4])])
    with pytest.raises(GraphError, match=r"'x' of the graph has the type tensor\(double\); allowed: .*tensor\(float\)"):
        open_graph(graph)


def test_a_path_that_the_library_cannot_take_is_named_with_what_to_do(make_graph) -> None:
    graph = make_graph([helper.make_node("Neg", ["x"], ["y"])], [("x", FLOAT, [4])], [("y", FLOAT, [4])])
    folder = graph.parent.rename(graph.parent.with_name(os.fsdecode(b"b\xe9")))
    with pytest.raises(GraphError, match=r"cannot open '.*b\\udce9/model.onnx', a path that is not UTF-8; rename it"):
        open_graph(folder / graph.name)
