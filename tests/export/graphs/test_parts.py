"""A graph that was taken apart, against the graph as it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from mutoscope_engines.backends import load_backend
from mutoscope_engines.chain import Chain
from mutoscope_engines.session import SessionOptions
from mutoscope_export.graphs.parts import Blocks, Cut, made_of, take_apart
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
OPTIONS = SessionOptions(threads=1)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def network(blocks: int) -> ir.Model:
    """x [n, 4], text [m, 4] -> y: in each block x W + sum of tanh(text V), with a shape read off both."""
    nodes, weights = [], []
    for block in range(blocks):
        for name in "WV":
            weight = normal(4, 4, seed=2 * block + ord(name)) / 2
            weights.append(numpy_helper.from_array(weight, f"blocks.{block}.{name}"))
        before = f"x{block}" if block else "x"
        nodes += [
            helper.make_node("MatMul", ["text", f"blocks.{block}.V"], [f"projected{block}"]),
            helper.make_node("Tanh", [f"projected{block}"], [f"bent{block}"]),
            helper.make_node("Mul", [f"bent{block}", "scale"], [f"key{block}"]),
            helper.make_node("ReduceSum", [f"key{block}", "rows"], [f"sum{block}"], keepdims=1),
            helper.make_node("Expand", [f"sum{block}", "shape"], [f"spread{block}"]),
            helper.make_node("MatMul", [before, f"blocks.{block}.W"], [f"moved{block}"]),
            helper.make_node("Add", [f"moved{block}", f"spread{block}"], [f"x{block + 1}"]),
        ]
    nodes = [
        helper.make_node("Sqrt", ["nine"], ["scale"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        *nodes,
        helper.make_node("Shape", ["text"], ["text_shape"]),
        helper.make_node("ReduceProd", ["text_shape"], ["elements"], keepdims=0),
        helper.make_node("Cast", ["elements"], ["number"], to=FLOAT),
        helper.make_node("Mul", [f"x{blocks}", "number"], ["y"]),
    ]
    weights += [
        numpy_helper.from_array(np.array(9, np.float32), "nine"),
        numpy_helper.from_array(np.array([0]), "rows"),
    ]
    ends = [
        [helper.make_tensor_value_info(name, FLOAT, [size, 4]) for name, size in values]
        for values in ([("x", "n"), ("text", "m")], [("y", "n")])
    ]
    graph = helper.make_graph(nodes, "network", *ends, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return ir.from_proto(onnx.shape_inference.infer_shapes(made))


def run(models: Sequence[ir.Model], folder: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    sessions = []
    for number, model in enumerate(models):
        path = folder / f"{number}.onnx"
        ir.save(model, path)
        onnx.checker.check_model(path, full_check=True)
        sessions.append(load_backend("onnxruntime").open(path, OPTIONS))
    with Chain(sessions) as chain:
        assert {spec.name for spec in chain.inputs} == set(feeds)
        return {name: tensor.numpy() for name, tensor in chain.run(feeds).items()}


CUTS: dict[str, tuple[Cut, int]] = {
    "what the text alone decides": (made_of("text"), 2),
    "two parts": (Blocks(r"blocks\.(\d+)\.", 400), 2),
    "three parts": (Blocks(r"blocks\.(\d+)\.", 300), 3),
    "a part a block": (Blocks(r"blocks\.(\d+)\.", 1), 5),
    "nothing to cut": (Blocks(r"blocks\.(\d+)\.", 10**9), 1),
    "no blocks": (Blocks(r"layers\.(\d+)\.", 1), 1),
    "nothing of it": (made_of("prompt"), 1),
}


@pytest.mark.parametrize(("cut", "count"), CUTS.values(), ids=CUTS.keys())
def test_the_parts_compute_what_the_whole_does(cut: Cut, count: int, tmp_path: Path) -> None:
    whole = network(5)
    parts = take_apart(whole, cut)
    assert len(parts) == count
    feeds = {"x": normal(7, 4), "text": normal(3, 4, seed=1)}
    (tmp_path / "whole").mkdir()
    np.testing.assert_array_equal(
        run(parts, tmp_path, feeds)["y"], run([whole], tmp_path / "whole", feeds)["y"], strict=True
    )


def test_what_one_input_decides_is_one_part_and_shapes_are_read_anew() -> None:
    text, rest = take_apart(network(3), made_of("text"))
    assert [value.name for value in text.graph.inputs] == ["text"]
    assert [value.name for value in text.graph.outputs] == ["sum0", "sum1", "sum2", "number"]
    assert [value.name for value in rest.graph.inputs] == ["x", "sum0", "sum1", "sum2", "number"]
    assert {name for name in text.graph.initializers} & {name for name in rest.graph.initializers} == set()


def test_blocks_pass_on_what_they_made_and_no_more() -> None:
    parts = take_apart(network(5), Blocks(r"blocks\.(\d+)\.", 300))
    ends = [
        ([value.name for value in part.graph.inputs], [value.name for value in part.graph.outputs]) for part in parts
    ]
    assert ends == [(["x", "text"], ["x2"]), (["x", "text", "x2"], ["x4"]), (["x", "text", "x4"], ["y"])]
    weights = [{name.split(".")[1] for name in part.graph.initializers if "." in name} for part in parts]
    assert weights == [{"0", "1"}, {"2", "3"}, {"4"}]


def test_the_whole_stays_as_it_was() -> None:
    whole = network(4)
    before = ir.to_proto(whole).SerializeToString()
    take_apart(whole, Blocks(r"blocks\.(\d+)\.", 1))
    assert ir.to_proto(whole).SerializeToString() == before


def test_a_row_of_all_branches_passes_branch_by_branch_so_that_a_compiler_sees_how_many_tokens_each_has(
    tmp_path: Path,
) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "row"], ["x0"]),
        *(helper.make_node("MatMul", [f"x{n}", f"blocks.{n}.W"], [f"x{n + 1}"]) for n in range(3)),
        helper.make_node("Identity", ["x3"], ["y"]),
    ]
    weights = [numpy_helper.from_array(normal(4, 4, seed=n), f"blocks.{n}.W") for n in range(3)]
    ends = [
        [helper.make_tensor_value_info("x", FLOAT, ["B", "S", 4]), helper.make_tensor_value_info("n", FLOAT, ["B"])],
        [helper.make_tensor_value_info("y", FLOAT, [1, "B*S", 4])],
    ]
    row = numpy_helper.from_array(np.array([1, -1, 4]), "row")
    graph = helper.make_graph(nodes, "rows", *ends, [*weights, row])
    whole = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    for node in whole.graph:
        node.outputs[0].shape, node.outputs[0].dtype = ir.Shape([1, "B*S", 4]), ir.DataType.FLOAT
    parts = take_apart(whole, Blocks(r"blocks\.(\d+)\.", 1))
    assert [(value.name, str(value.shape)) for part in parts[1:] for value in part.graph.inputs] == [
        ("n", "[B]"), ("x1", "[B,S,4]"), ("x2", "[B,S,4]")
    ]  # fmt: skip
    assert [str(part.graph.outputs[0].shape) for part in parts] == ["[B,S,4]", "[B,S,4]", "[1,B*S,4]"]
    x = normal(2, 5, 4)
    expected = np.reshape(x, (1, 10, 4)) @ normal(4, 4) @ normal(4, 4, seed=1) @ normal(4, 4, seed=2)
    given = run(parts, tmp_path, {"x": x, "n": normal(2)})
    np.testing.assert_allclose(given["y"], expected, rtol=1e-4, atol=1e-5)
