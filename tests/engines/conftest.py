"""Small ONNX graphs for the tests of backends, and the backends that run here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from mutoscope_engines.backends import BACKENDS, load_backend
from mutoscope_engines.session import Backend
from mutoscope_engines.tensorrt.backend import TensorRtBackend
from onnx import TensorProto, helper

from tests.engines.pretended import PRETENDED

FLOAT, INT64, UINT8, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8, TensorProto.BOOL
Value = tuple[str, int, Sequence[Any]]
MakeGraph = Callable[..., Path]


@pytest.fixture
def make_graph(tmp_path: Path) -> MakeGraph:
    """Writes a graph of nodes, inputs and outputs, the latter as (name, type, shape), and gives its path."""

    def write(
        nodes: Sequence[onnx.NodeProto],
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        initializers: Sequence[onnx.TensorProto] = (),
        name: str = "model.onnx",
    ) -> Path:
        ends = [[helper.make_tensor_value_info(*value) for value in values] for values in (inputs, outputs)]
        graph = helper.make_graph(list(nodes), "graph", *ends, list(initializers))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
        folder = tmp_path / "graph"
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_bytes(model.SerializeToString())
        return path

    return write


@pytest.fixture
def sum_and_product(make_graph: MakeGraph) -> Path:
    """a, b [h, w] -> sum, product [h, w]"""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Mul", ["a", "b"], ["product"])]
    return make_graph(nodes, *([(name, FLOAT, ["h", "w"]) for name in names] for names in ("ab", ("sum", "product"))))


@pytest.fixture
def chained(make_graph: MakeGraph) -> list[Path]:
    """x [n], a [n], b [n] -> y = 2 (a + x x) b - a, in five parts, of which the first depends on x alone."""
    parts = [
        ("Mul", ("x", "x"), "once"),
        ("Add", ("a", "once"), "h1"),
        ("Mul", ("h1", "b"), "h2"),
        ("Add", ("h2", "h2"), "h3"),
        ("Sub", ("h3", "a"), "y"),
    ]
    return [
        make_graph(
            [helper.make_node(operator, inputs, [output])],
            [(name, FLOAT, ["n"]) for name in dict.fromkeys(inputs)],
            [(output, FLOAT, ["n"])],
            name=f"model.{number}.onnx",
        )
        for number, (operator, inputs, output) in enumerate(parts, start=1)
    ]


@pytest.fixture
def endless(make_graph: MakeGraph) -> Path:
    """matrix [128, 128], count [] -> matrix multiplied by itself `count` times: a million take an hour."""
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "matrix"], ["y"]), helper.make_node("Identity", ["on"], ["still_on"])],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("on", BOOL, []),
            helper.make_tensor_value_info("x", FLOAT, [128, 128]),
        ],
        [helper.make_tensor_value_info("still_on", BOOL, []), helper.make_tensor_value_info("y", FLOAT, [128, 128])],
    )
    return make_graph(
        [helper.make_node("Loop", ["count", "", "matrix"], ["power"], body=body)],
        [("count", INT64, []), ("matrix", FLOAT, [128, 128])],
        [("power", FLOAT, [128, 128])],
    )


def available(name: str) -> Backend:
    backend = load_backend(name)
    if reason := backend.unavailable_because():
        pytest.skip(reason)
    if isinstance(backend, TensorRtBackend):
        pytest.skip("it runs engines, and none is built of these graphs; `mutoscope gpu-check` runs it")
    return backend


@pytest.fixture(params=[*BACKENDS, *PRETENDED])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Every backend: those of the table where they can run, and those of GPUs as they are without one."""
    if request.param in PRETENDED:
        return PRETENDED[request.param](monkeypatch)
    return available(request.param)


@pytest.fixture(
    params=["onnxruntime", "openvino", "onnxruntime-cuda", "onnxruntime-cuda on host memory", "the public fake"]
)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Every backend that reads the graph itself, where others find the engine that was built of it."""
    if request.param in PRETENDED:
        return PRETENDED[request.param](monkeypatch)
    return available(request.param)


@pytest.fixture(params=["onnxruntime"])
def interruptible(request: pytest.FixtureRequest) -> Backend:
    """Every backend that stops in the middle of a run; a GPU finishes it."""
    return available(request.param)
