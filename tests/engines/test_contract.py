"""What `Session` promises, held against every backend in the table that can run here, the GPU's on host memory, and the
public fake."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope_engines.chain import Chain
from mutoscope_engines.errors import CancelledError, ShapeError
from mutoscope_engines.session import Backend, SessionOptions
from onnx import TensorProto, helper

FLOAT, INT64, UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8
OPTIONS = SessionOptions(threads=1)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_both_outputs_are_those_of_numpy_at_any_size(backend: Backend, sum_and_product: Path) -> None:
    with backend.open(sum_and_product, OPTIONS) as session:
        for h, w in ((1, 1), (3, 5), (40, 7)):
            a, b = normal(h, w), normal(h, w, seed=1)
            outputs = session.run({"a": a, "b": b})
            assert outputs["sum"].shape == (h, w) and outputs["sum"].dtype == "float32"
            np.testing.assert_allclose(outputs["sum"].numpy(), a + b, rtol=1e-6)
            np.testing.assert_allclose(outputs["product"].numpy(), a * b, rtol=1e-6)


def test_inputs_and_outputs_are_described_in_the_order_of_the_graph(reader: Backend, sum_and_product: Path) -> None:
    with reader.open(sum_and_product, OPTIONS) as session:
        assert [(spec.name, spec.dtype, spec.shape) for spec in session.inputs] == [
            ("a", "float32", ("h", "w")),
            ("b", "float32", ("h", "w")),
        ]
        assert [spec.name for spec in session.outputs] == ["sum", "product"]


def test_integers_and_bytes_keep_their_types(backend: Backend, make_graph) -> None:
    graph = make_graph(
        [
            helper.make_node("Cast", ["pixels"], ["wide"], to=INT64),
            helper.make_node("Add", ["ids", "wide"], ["sum"]),
            helper.make_node("Cast", ["ids"], ["narrow"], to=UINT8),
        ],
        [("ids", INT64, ["n"]), ("pixels", UINT8, ["n"])],
        [("sum", INT64, ["n"]), ("narrow", UINT8, ["n"])],
    )
    ids, pixels = np.array([1, 2, 255]), np.array([0, 200, 255], np.uint8)
    with backend.open(graph, OPTIONS) as session:
        outputs = {name: tensor.numpy() for name, tensor in session.run({"ids": ids, "pixels": pixels}).items()}
    assert outputs["sum"].dtype == np.int64 and outputs["sum"].tolist() == [1, 202, 510]
    assert outputs["narrow"].dtype == np.uint8 and outputs["narrow"].tolist() == [1, 2, 255]


def test_a_scalar_goes_in_and_out(backend: Backend, make_graph) -> None:
    graph = make_graph([helper.make_node("Mul", ["x", "x"], ["y"])], [("x", FLOAT, [])], [("y", FLOAT, [])])
    with backend.open(graph, OPTIONS) as session:
        y = session.run({"x": np.array(3, np.float32)})["y"].numpy()
    assert y.shape == () and y == 9


def test_axes_without_a_name_need_not_agree(backend: Backend, make_graph) -> None:
    negative = helper.make_node("Neg", ["x"], ["y"])
    graph = make_graph([negative], [("x", FLOAT, [None, None])], [("y", FLOAT, [None, None])])
    with backend.open(graph, OPTIONS) as session:
        assert session.run({"x": normal(2, 3)})["y"].shape == (2, 3)


def test_outputs_are_fed_back_without_conversion(backend: Backend, sum_and_product: Path) -> None:
    a, b = normal(3, 4), normal(3, 4, seed=1)
    with backend.open(sum_and_product, OPTIONS) as session:
        feeds: dict[str, Any] = {"a": a, "b": b}
        for _ in range(5):
            outputs = session.run(feeds)
            feeds = {"a": outputs["sum"], "b": outputs["product"]}
            a, b = a + b, a * b
        np.testing.assert_allclose(outputs["sum"].numpy(), a, rtol=1e-4)
        np.testing.assert_allclose(outputs["product"].numpy(), b, rtol=1e-4)


def test_tensors_pass_between_sessions_of_one_backend(backend: Backend, sum_and_product: Path) -> None:
    a = normal(2, 3)
    with backend.open(sum_and_product, OPTIONS) as one, backend.open(sum_and_product, OPTIONS) as other:
        doubled = one.run({"a": a, "b": a})["sum"]
        np.testing.assert_allclose(other.run({"a": doubled, "b": a})["sum"].numpy(), 3 * a, rtol=1e-6)


def test_a_row_outlives_the_tensor_it_is_of(backend: Backend, make_graph) -> None:
    graph = make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])], [("x", FLOAT, ["k", "n"])], [("y", FLOAT, ["k", "n"])]
    )
    x = normal(3, 500)
    with backend.open(graph, OPTIONS) as session:
        tensor = session.run({"x": x})["y"]
        row = tensor.row(1)
        del tensor
        gc.collect()
        session.run({"x": normal(3, 500, seed=1)})
        assert row.shape == (500,)
        np.testing.assert_array_equal(row.numpy(), 2 * x[1])
        assert row.row(7).numpy() == 2 * x[1, 7]


def test_an_input_that_is_not_fed_again_keeps_what_it_had(backend: Backend, sum_and_product: Path) -> None:
    a, b, c = normal(3, 4), normal(3, 4, seed=1), normal(3, 4, seed=2)
    with backend.open(sum_and_product, OPTIONS) as session, session.bind() as binding:
        binding.run({"a": a, "b": b})
        np.testing.assert_allclose(binding.run({"a": c})["sum"].numpy(), c + b, rtol=1e-6)
        np.testing.assert_allclose(binding.run({"b": a})["sum"].numpy(), c + a, rtol=1e-6)
        np.testing.assert_allclose(binding.run({})["product"].numpy(), c * a, rtol=1e-6)


def test_what_was_fed_may_be_changed_afterwards(backend: Backend, sum_and_product: Path) -> None:
    a, b = normal(3, 4), normal(3, 4, seed=1)
    expected = a + b
    with backend.open(sum_and_product, OPTIONS) as session, session.bind() as binding:
        binding.run({"a": a, "b": b})
        a[:], b[:] = 0, 0
        np.testing.assert_allclose(binding.run({})["sum"].numpy(), expected, rtol=1e-6)


def test_a_binding_is_fed_its_own_outputs_and_their_rows(backend: Backend, make_graph) -> None:
    nodes = [
        helper.make_node("Add", ["state", "latents"], ["sum"]),
        helper.make_node("Mul", ["sum", "half"], ["next_state"]),
    ]
    half = helper.make_tensor("half", FLOAT, [], [0.5])
    inputs = [("state", FLOAT, ["k", "n"]), ("latents", FLOAT, ["n"])]
    graph = make_graph(nodes, inputs, [("next_state", FLOAT, ["k", "n"])], [half])
    state = normal(3, 70)
    expected = state
    with backend.open(graph, OPTIONS) as session, session.bind() as binding:
        feeds: dict[str, Any] = {"state": state, "latents": state[0]}
        for _ in range(6):
            next_state = binding.run(feeds)["next_state"]
            feeds = {"state": next_state, "latents": next_state.row(0)}
            expected = (expected + expected[0]) / 2
            np.testing.assert_allclose(next_state.numpy(), expected, rtol=1e-5)


def test_bindings_of_one_session_do_not_touch_each_other(backend: Backend, sum_and_product: Path) -> None:
    with backend.open(sum_and_product, OPTIONS) as session, session.bind() as one, session.bind() as other:
        of_one = one.run({"a": normal(2, 2), "b": normal(2, 2)})["sum"]
        of_other = other.run({"a": normal(5, 1, seed=1), "b": normal(5, 1, seed=1)})["sum"]
        np.testing.assert_allclose(of_one.numpy(), 2 * normal(2, 2), rtol=1e-6)
        np.testing.assert_allclose(of_other.numpy(), 2 * normal(5, 1, seed=1), rtol=1e-6)


def test_a_binding_after_another_begins_with_nothing_fed(backend: Backend, sum_and_product: Path) -> None:
    with backend.open(sum_and_product, OPTIONS) as session:
        with session.bind() as before:
            before.run({"a": normal(2, 2), "b": normal(2, 2)})
        before.close()
        with session.bind() as binding, pytest.raises(ShapeError, match=r"missing \['b'\]"):
            binding.run({"a": normal(2, 2)})


def test_other_sizes_than_in_the_first_run_are_refused(backend: Backend, sum_and_product: Path) -> None:
    with backend.open(sum_and_product, OPTIONS) as session, session.bind() as binding:
        binding.run({"a": normal(2, 2), "b": normal(2, 2)})
        with pytest.raises(ShapeError, match=r"'a' has shape \(2, 3\); this binding began with \(2, 2\)"):
            binding.run({"a": normal(2, 3), "b": normal(2, 3)})
        with pytest.raises(ShapeError, match=r"unknown \['c'\]"):
            binding.run({"c": normal(2, 2)})
        np.testing.assert_allclose(binding.run({})["sum"].numpy(), 2 * normal(2, 2), rtol=1e-6)


def test_what_numpy_gives_is_the_callers_own(backend: Backend, sum_and_product: Path) -> None:
    a, b = normal(3, 4), normal(3, 4, seed=1)
    with backend.open(sum_and_product, OPTIONS) as session:
        tensor = session.run({"a": a, "b": b})["sum"]
        mine = tensor.numpy()
        session.run({"a": b, "b": b})
        np.testing.assert_allclose(mine, a + b, rtol=1e-6)
        mine[:] = 0
        np.testing.assert_allclose(tensor.numpy(), a + b, rtol=1e-6)
    assert mine.flags.c_contiguous and mine.flags.owndata


def test_an_input_need_not_be_contiguous(backend: Backend, sum_and_product: Path) -> None:
    a, b = normal(8, 6).T[::2], normal(3, 16)[:, ::-2]
    with backend.open(sum_and_product, OPTIONS) as session:
        np.testing.assert_allclose(session.run({"a": a, "b": b})["sum"].numpy(), a + b, rtol=1e-6)


@pytest.mark.parametrize(
    ("feeds", "complaint"),
    [
        ({"a": normal(2, 2)}, r"takes \['a', 'b'\]; missing \['b'\]"),
        ({"a": normal(2, 2), "b": normal(2, 2), "c": normal(2, 2)}, r"unknown \['c'\]"),
        ({"a": normal(2, 2), "b": np.zeros((2, 2))}, "'b' is float64; the graph takes float32"),
        ({"a": normal(2, 2), "b": normal(2)}, r"'b' has shape \(2,\); the graph takes"),
        ({"a": normal(2, 3), "b": normal(2, 4)}, r"'b'.*\(2, 4\)"),
    ],
)
def test_wrong_feeds_are_refused_with_what_is_wrong(
    backend: Backend, sum_and_product: Path, feeds: dict[str, Any], complaint: str
) -> None:
    with backend.open(sum_and_product, OPTIONS) as session, pytest.raises(ShapeError, match=complaint):
        session.run(feeds)


def test_sizes_behind_one_symbol_must_agree(reader: Backend, sum_and_product: Path) -> None:
    complaint = r"'b' has shape \(2, 4\); the graph takes \('h', 'w'\) with .*'w': 3"
    with reader.open(sum_and_product, OPTIONS) as session, pytest.raises(ShapeError, match=complaint):
        session.run({"a": normal(2, 3), "b": normal(2, 4)})


def test_a_tensor_of_the_wrong_type_is_refused_like_an_array(backend: Backend, make_graph) -> None:
    graph = make_graph([helper.make_node("Cast", ["x"], ["y"], to=INT64)], [("x", FLOAT, ["n"])], [("y", INT64, ["n"])])
    complaint = "'x' is int64; the graph takes float32"
    with backend.open(graph, OPTIONS) as session, pytest.raises(ShapeError, match=complaint):
        session.run({"x": session.run({"x": normal(3)})["y"]})


def test_two_threads_at_once_get_their_own_results(backend: Backend, sum_and_product: Path) -> None:
    def runs(seed: int) -> None:
        for i in range(30):
            a, b = normal(seed + 1, 50 + i, seed=seed), normal(seed + 1, 50 + i, seed=i)
            outputs = session.run({"a": a, "b": b})
            np.testing.assert_allclose(outputs["sum"].numpy(), a + b, rtol=1e-6)

    with backend.open(sum_and_product, OPTIONS) as session, ThreadPoolExecutor(2) as threads:
        list(threads.map(runs, range(2)))


def test_cancel_stops_a_run_and_the_next_one_works(interruptible: Backend, endless: Path) -> None:
    matrix = np.eye(128, dtype=np.float32)
    caught: list[BaseException] = []

    def run_for_an_hour() -> None:
        try:
            session.run({"count": np.array(10**6), "matrix": matrix})
        except BaseException as error:
            caught.append(error)

    with interruptible.open(endless, OPTIONS) as session:
        session.cancel()  # with nothing to cancel, nothing happens
        thread = threading.Thread(target=run_for_an_hour, daemon=True)
        thread.start()
        while thread.is_alive():
            session.cancel()
            thread.join(0.1)
        assert [type(error) for error in caught] == [CancelledError]
        power = session.run({"count": np.array(2), "matrix": 2 * matrix})["power"].numpy()
    np.testing.assert_array_equal(power, 8 * matrix)


def test_ctrl_c_stops_a_run_in_the_main_thread(interruptible: Backend, endless: Path) -> None:
    code = f"""
import signal, threading
import numpy as np
from pathlib import Path
from mutoscope_engines.backends import load_backend
from mutoscope_engines.session import SessionOptions
signal.signal(signal.SIGINT, signal.default_int_handler)
session = load_backend({interruptible.name!r}).open(Path({str(endless)!r}), SessionOptions(threads=1))
threading.Timer(0.3, print, ["running"], dict(flush=True)).start()
try:
    session.run({{"count": np.array(10**6), "matrix": np.eye(128, dtype=np.float32)}})
except KeyboardInterrupt:
    print("interrupted")
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=60)  # the run itself takes an hour
        finally:
            process.kill()
    assert output == "interrupted\n" and process.returncode == 0


def test_a_closed_session_refuses_to_run_and_closes_again(backend: Backend, sum_and_product: Path) -> None:
    session = backend.open(sum_and_product, OPTIONS)
    session.close()
    session.close()
    session.cancel()
    with pytest.raises(RuntimeError, match="closed"):
        session.run({"a": normal(2, 2), "b": normal(2, 2)})


def test_parts_run_as_one_graph(backend: Backend, chained: list[Path]) -> None:
    with Chain([backend.open(part, OPTIONS) for part in chained]) as chain, chain.bind() as binding:
        assert {spec.name for spec in chain.inputs} == {"x", "a", "b"}
        assert [spec.name for spec in chain.outputs] == ["y"]
        fed: dict[str, Any] = {}
        for feeds in ({name: normal(30, seed=seed) for seed, name in enumerate("xab")},
                      {"b": normal(30, seed=7)}, {"a": normal(30, seed=8)}, {}, {"x": normal(30, seed=9)}):  # fmt: skip
            fed |= feeds
            y = binding.run(feeds)["y"].numpy()
            expected = 2 * (fed["a"] + fed["x"] ** 2) * fed["b"] - fed["a"]
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        fed["a"] = y
        y = binding.run({"a": binding.run({})["y"]})["y"].numpy()
        np.testing.assert_allclose(y, 2 * (fed["a"] + fed["x"] ** 2) * fed["b"] - fed["a"], rtol=1e-4, atol=1e-4)


def test_a_chain_refuses_what_a_session_refuses(backend: Backend, chained: list[Path]) -> None:
    feeds = {name: normal(3) for name in "xab"}
    with Chain([backend.open(part, OPTIONS) for part in chained]) as chain, chain.bind() as binding:
        with pytest.raises(ShapeError, match=r"missing \['b'\]"):
            binding.run({"x": feeds["x"], "a": feeds["a"]})
        with pytest.raises(ShapeError, match=r"unknown \['h1'\]"):
            binding.run(feeds | {"h1": normal(3)})
        binding.run(feeds)
        with pytest.raises(ShapeError, match="this binding began with"):
            binding.run({"a": normal(4)})
