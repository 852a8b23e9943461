"""What OpenVINO must be held to: the types of the graph, memory that goes round, and when "auto" takes it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope_engines import openvino_cpu
from mutoscope_engines.backends import choose_backend, load_backend
from mutoscope_engines.errors import CancelledError, GraphError, OutOfMemoryError
from mutoscope_engines.session import SessionOptions
from mutoscope_engines.system.cpu_class import CpuClass
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("openvino")
FLOAT, INT64, BFLOAT16 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BFLOAT16
RANDOM = np.random.default_rng(3)


def open_graph(path: Path):
    return load_backend("openvino").open(path, SessionOptions(threads=1))


def rounded(array: np.ndarray) -> np.ndarray:
    """To the nearest bfloat16, ties to even."""
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def test_products_are_in_bfloat16_and_what_is_around_them_in_float32(make_graph) -> None:
    """`x * 1.001 + x_bf16 @ w_bf16`, as residual sums in a bf16 graph are."""
    x, w = RANDOM.standard_normal((64, 256), np.float32), rounded(RANDOM.standard_normal((256, 256), np.float32))
    weight = helper.make_tensor("w", BFLOAT16, w.shape, (w.view(np.uint32) >> 16).astype(np.uint16).tobytes(), raw=True)
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=BFLOAT16),
        helper.make_node("MatMul", ["narrow", "w"], ["product"]),
        helper.make_node("Cast", ["product"], ["wide"], to=FLOAT),
        helper.make_node("Mul", ["x", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "wide"], ["y"]),
        helper.make_node("Sub", ["y", "wide"], ["kept"]),
    ]
    factor = numpy_helper.from_array(np.float32(1.001), "factor")
    ends = [("x", FLOAT, ["n", 256])], [("y", FLOAT, ["n", 256]), ("kept", FLOAT, ["n", 256])]
    with open_graph(make_graph(nodes, *ends, [weight, factor])) as session:
        outputs = {name: tensor.numpy() for name, tensor in session.run({"x": x}).items()}
    exact = rounded(x).astype(np.float64) @ w
    off = outputs["y"] - 1.001 * x - exact
    assert np.linalg.norm(off) < 5e-3 * np.linalg.norm(exact)  # the product rounded once, to 8 bits
    assert np.abs(outputs["kept"] - np.float32(1.001) * x).max() < 1e-4


def test_caches_in_bfloat16_pass_from_run_to_run(make_graph) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=BFLOAT16),
        helper.make_node("Add", ["cache", "narrow"], ["next_cache"]),
        helper.make_node("Cast", ["next_cache"], ["y"], to=FLOAT),
    ]
    first = make_graph(nodes[:1], [("x", FLOAT, ["n", 2])], [("narrow", BFLOAT16, ["n", 2])])
    with open_graph(first) as session:
        start = session.run({"x": np.full((3, 2), 0.5, np.float32)})["narrow"]
    assert start.dtype == "bfloat16" and start.row(1).shape == (2,) and start.row(1).dtype == "bfloat16"
    inputs = [("x", FLOAT, ["n", 2]), ("cache", BFLOAT16, ["n", 2])]
    outputs = [("next_cache", BFLOAT16, ["n", 2]), ("y", FLOAT, ["n", 2])]
    with open_graph(make_graph(nodes, inputs, outputs)) as session, session.bind() as binding:
        feeds: dict[str, Any] = {"cache": start}
        for count in range(1, 6):
            made = binding.run({"x": np.ones((3, 2), np.float32), **feeds})
            feeds = {"cache": made["next_cache"]}
            assert (made["y"].numpy() == count + 0.5).all()


def test_an_own_output_that_stays_fed_is_not_written_over(make_graph) -> None:
    graph = make_graph(
        [helper.make_node("Add", ["a", "b"], ["sum"])],
        [("a", FLOAT, ["n"]), ("b", FLOAT, ["n"])],
        [("sum", FLOAT, ["n"])],
    )
    one, ten = np.ones(4, np.float32), np.full(4, 10, np.float32)
    with open_graph(graph) as session, session.bind() as binding:
        binding.run({"a": one, "b": one})
        total = binding.run({"a": one})["sum"]
        for expected in (12, 12, 12):
            assert (binding.run({"a": total, "b": ten})["sum"].numpy() == expected).all()
        assert [binding.run({"b": ten})["sum"].numpy()[0] for _ in range(3)] == [12, 12, 12]


def test_cancel_stops_a_run_between_two_operators(make_graph) -> None:
    """Products that take seconds together, each one few milliseconds."""
    size, count = 512, 1500
    nodes = [helper.make_node("MatMul", [f"x{i}", "x0"], [f"x{i + 1}"]) for i in range(count)]
    graph = make_graph(nodes, [("x0", FLOAT, [size, size])], [(f"x{count}", FLOAT, [size, size])])
    caught: list[BaseException] = []

    def run() -> None:
        try:
            session.run({"x0": np.eye(size, dtype=np.float32)})
        except BaseException as error:
            caught.append(error)

    with open_graph(graph) as session:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        time.sleep(0.2)
        while thread.is_alive():
            session.cancel()
            thread.join(0.05)
    assert [type(error) for error in caught] == [CancelledError]


def test_running_out_of_memory_says_what_to_lower(make_graph) -> None:
    expand = helper.make_node("Expand", ["x", "shape"], ["y"])
    graph = make_graph([expand], [("x", FLOAT, [1]), ("shape", INT64, [2])], [("y", FLOAT, ["a", "b"])])
    complaint = r"out of memory while running.*close other programs"
    with open_graph(graph) as session, pytest.raises(OutOfMemoryError, match=complaint):
        session.run({"x": np.zeros(1, np.float32), "shape": np.array([2**20, 2**20])})


def test_sizes_that_do_not_fit_inside_the_graph_are_a_matter_of_the_graph(make_graph) -> None:
    add = helper.make_node("Add", ["a", "b"], ["y"])
    graph = make_graph([add], [("a", FLOAT, ["m"]), ("b", FLOAT, ["n"])], [("y", FLOAT, ["o"])])
    with open_graph(graph) as session, pytest.raises(GraphError, match="while running"):
        session.run({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)})


@pytest.mark.parametrize(
    ("classes", "precisions", "chosen"),
    [
        (["amx", "avx512-bf16"], ["fp32", "bf16-cpu"], ("openvino", "bf16-cpu")),
        (["amx", "avx512-bf16"], ["fp32", "int8"], ("onnxruntime", "fp32")),
        (["avx512-vnni", "avx2-vnni", "avx512", "avx2"], ["fp32", "bf16-cpu"], ("openvino", "fp32")),
        (list(CpuClass), ["int8", "fp32"], ("onnxruntime", "int8")),
        (["avx512-vnni", "avx2-vnni", "avx512", "avx2"], ["fp32", "int8"], ("openvino", "fp32")),
        (["avx512-vnni", "avx2-vnni", "avx512", "avx2"], ["bf16-cpu", "fp32"], ("openvino", "fp32")),
        (["amx", "avx512-bf16"], ["int8", "fp32", "bf16-cpu"], ("openvino", "bf16-cpu")),
        (["arm-bf16", "arm-dotprod", "arm", "other"], ["fp32", "bf16-cpu"], ("onnxruntime", "fp32")),
        (list(CpuClass), ["bf16-cpu"], ("openvino", "bf16-cpu")),
        (list(CpuClass), ["int8", "bf16"], ("onnxruntime", "int8")),
    ],
)
def test_auto_takes_what_is_fastest_on_each_class_of_cpu(
    classes: list[str], precisions: list[str], chosen: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in classes:
        monkeypatch.setattr(openvino_cpu, "cpu_class", lambda name=name: CpuClass(name))
        backend, precision, _ = choose_backend("onnxruntime+openvino", precisions)
        assert (backend.name, precision) == chosen, name


def test_loading_the_library_tells_nobody_and_writes_nothing(tmp_path: Path) -> None:
    """Importing OpenVINO by itself sends an event, and leaves an id in the user's home for the next."""
    code = """
import sys
sys.addaudithook(lambda event, _: event.startswith("socket.") and sys.exit(f"used the network: {event}"))
from mutoscope_engines.openvino_cpu import library
library().Core()
sys.exit("openvino_telemetry.main" in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
