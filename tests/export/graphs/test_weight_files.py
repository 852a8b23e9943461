"""Graphs of one folder share what they have in common, and each reads back what it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from mutoscope_export.graphs.weight_files import StoredWeights, WeightFolder
from onnx import helper, numpy_helper

RANDOM = np.random.default_rng(0)
SHARED, OTHER = (RANDOM.standard_normal((40, 16)).astype(np.float32) for _ in range(2))
SIZE = SHARED.nbytes


def summing(**weights: np.ndarray) -> ir.Model:
    """`y = x + w + ...` over all weights."""
    nodes, last = [], "x"
    for name in weights:
        nodes.append(helper.make_node("Add", [last, name], [f"{last}+"]))
        last += "+"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    ends = ([helper.make_tensor_value_info(name, 1, [40, 16])] for name in "xy")
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    opset = [helper.make_opsetid("", 23)]
    return ir.from_proto(
        helper.make_model(helper.make_graph(nodes, "sum", *ends, initializers), opset_imports=opset, ir_version=10)
    )


def run(graph: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.zeros((40, 16), np.float32)})[0]


def places(graph: Path) -> list[dict[str, str]]:
    stored = onnx.load(graph, load_external_data=False).graph.initializer
    return [{entry.key: entry.value for entry in tensor.external_data} for tensor in stored]


def test_a_second_graph_stores_only_what_the_first_has_not(tmp_path):
    folder = WeightFolder(tmp_path / "made")
    first = folder.save(summing(a=SHARED), "a.onnx")
    second = folder.save(summing(b=OTHER, c=SHARED), "b.onnx")
    assert first == StoredWeights(("a.onnx.data",), SIZE)
    assert second == StoredWeights(("b.onnx.data", "a.onnx.data"), 2 * SIZE)
    assert {path.name: path.stat().st_size for path in folder.path.glob("*.data")} == {
        "a.onnx.data": SIZE, "b.onnx.data": SIZE,
    }  # fmt: skip
    np.testing.assert_array_equal(run(folder.path / "a.onnx"), SHARED)
    np.testing.assert_array_equal(run(folder.path / "b.onnx"), OTHER + SHARED)


def test_a_graph_that_brings_nothing_new_has_no_file_of_its_own(tmp_path):
    folder = WeightFolder(tmp_path)
    folder.save(summing(a=SHARED, b=OTHER), "a.onnx")
    assert folder.save(summing(b=OTHER), "b.onnx") == StoredWeights(("a.onnx.data",), SIZE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data", "b.onnx"]
    np.testing.assert_array_equal(run(tmp_path / "b.onnx"), OTHER)


def test_equal_weights_of_one_graph_are_stored_and_counted_once(tmp_path):
    assert WeightFolder(tmp_path).save(summing(a=SHARED, b=OTHER, c=SHARED), "a.onnx").num_bytes == 2 * SIZE
    assert [place["offset"] for place in places(tmp_path / "a.onnx")] == ["0", str(SIZE), "0"]
    np.testing.assert_array_equal(run(tmp_path / "a.onnx"), SHARED + OTHER + SHARED)


def test_small_weights_stay_in_the_graph(tmp_path):
    model = summing(a=np.ones(16, np.float32))
    assert WeightFolder(tmp_path).save(model, "a.onnx") == StoredWeights()
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"] and places(tmp_path / "a.onnx") == [{}]


def test_every_weight_is_computed_once_whether_it_is_there_already_or_not(tmp_path):
    read: list[str] = []

    def counted(name: str, array: np.ndarray) -> ir.LazyTensor:
        def compute() -> ir.Tensor:
            read.append(name)
            return ir.Tensor(array)

        return ir.LazyTensor(compute, dtype=ir.DataType.FLOAT, shape=ir.Shape(array.shape))

    model = summing(a=SHARED, b=OTHER, c=SHARED)
    for name, value in model.graph.initializers.items():
        value.const_value = counted(name, value.const_value.numpy())
    WeightFolder(tmp_path).save(model, "a.onnx")
    assert read == ["a", "b", "c"]
