"""The public fake: what it refuses, what it pretends, and what it remembers. The contract suite has the rest."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope_engines.backends import BACKENDS, backends_named, choose_backend
from mutoscope_engines.errors import BackendUnavailableError, CancelledError, GraphError, ShapeError
from mutoscope_engines.session import EngineWanted, Figures, SessionOptions
from mutoscope_engines.testing import FakeBackend, only_backends
from onnx import TensorProto, helper

OPTIONS = SessionOptions()
WANTED = EngineWanted("fp32", {}, {}, stored_bytes=7)


@pytest.fixture
def enlarging(make_graph) -> Path:
    """x f32 [n, w] -> y f32 [n, 2*w], whatever the graph's one node does; a function stands for it."""
    node = helper.make_node("Concat", ["x", "x"], ["y"], axis=1)
    return make_graph([node], [("x", TensorProto.FLOAT, ["n", "w"])], [("y", TensorProto.FLOAT, ["n", "2*w"])])


def gives(y: Any) -> FakeBackend:
    return FakeBackend({"graph": lambda x: {"y": y}})


X = np.ones((3, 2), np.float32)


def run(backend: FakeBackend, graph: Path) -> Any:
    with backend.open(graph, OPTIONS) as session:
        return session.run({"x": X})["y"].numpy()


def test_a_graph_computes_what_its_function_does(enlarging) -> None:
    np.testing.assert_array_equal(run(gives(np.full((3, 4), 5, np.float32)), enlarging), np.full((3, 4), 5))


def test_without_functions_every_output_is_zero_in_the_size_and_type_that_the_graph_declares(enlarging) -> None:
    made = run(FakeBackend(), enlarging)
    assert (made.dtype, made.shape, made.any()) == (np.float32, (3, 4), np.False_)


def test_a_function_may_be_of_one_file_alone(enlarging) -> None:
    whole, part = np.zeros((3, 4), np.float32), np.ones((3, 4), np.float32)
    backend = FakeBackend({"graph": lambda x: {"y": whole}, "graph/model.onnx": lambda x: {"y": part}})
    np.testing.assert_array_equal(run(backend, enlarging), part)


@pytest.mark.parametrize(
    ("y", "complaint"),
    [
        (np.zeros((3, 4)), "gave 'y' as float64; the graph declares float32"),
        (np.zeros((3, 5), np.float32), r"gave 'y' in shape \(3, 5\); the graph declares \('n', '2\*w'\) with .*'w': 2"),
        (np.zeros((4, 4), np.float32), r"gave 'y' in shape \(4, 4\)"),
        (np.zeros((3, 4, 1), np.float32), r"gave 'y' in shape \(3, 4, 1\)"),
    ],
)
def test_a_function_is_held_to_what_the_graph_declares(enlarging, y: Any, complaint: str) -> None:
    with pytest.raises(ShapeError, match=complaint):
        run(gives(y), enlarging)
    pretending = gives(y)
    pretending.checks_outputs = False
    assert run(pretending, enlarging).shape == y.shape


def test_a_function_gives_every_output_and_no_other(enlarging) -> None:
    backend = FakeBackend({"graph": lambda x: {"z": x}})
    with pytest.raises(ShapeError, match=r"the function of graph gave \['z'\]; the graph declares \['y'\]"):
        run(backend, enlarging)


def test_a_graph_without_a_function_is_refused_when_it_is_opened(enlarging) -> None:
    with pytest.raises(GraphError, match="no function for graph; it has: denoiser"):
        FakeBackend({"denoiser": lambda x: {"y": x}}).open(enlarging, OPTIONS)


def test_what_a_function_raises_reaches_the_caller_as_it_is(enlarging) -> None:
    def exhausted(x: Any) -> Any:
        raise MemoryError("9 GiB")

    with pytest.raises(MemoryError, match="9 GiB"):
        run(FakeBackend({"graph": exhausted}), enlarging)


def test_a_run_that_is_held_lasts_until_it_is_cancelled(enlarging) -> None:
    backend = gives(np.zeros((3, 4), np.float32))
    begun = backend.hold("graph")
    caught: list[BaseException] = []

    def run_until_cancelled() -> None:
        try:
            session.run({"x": X})
        except BaseException as error:
            caught.append(error)

    with backend.open(enlarging, OPTIONS) as session:
        thread = threading.Thread(target=run_until_cancelled, daemon=True)
        thread.start()
        assert begun.wait(60) and not caught
        session.cancel()
        thread.join(60)
        assert [type(error) for error in caught] == [CancelledError]
        backend.held.clear()
        assert session.run({"x": X})["y"].shape == (3, 4)


def test_a_tensor_is_refused_once_its_binding_ran_again_or_its_session_was_closed(enlarging) -> None:
    backend = gives(np.zeros((3, 4), np.float32))
    session = backend.open(enlarging, OPTIONS)
    with session.bind() as binding:
        first = binding.run({"x": X})["y"]
        row = first.row(1)
        last = binding.run({})["y"]
        for stale in (first, row):
            with pytest.raises(RuntimeError, match="a tensor of graph is used after its binding ran again"):
                stale.numpy()
        assert last.numpy().shape == (3, 4) and (last.dtype, last.shape) == ("float32", (3, 4))
    with pytest.raises(RuntimeError, match="ran again or was closed"):
        last.numpy()
    session.close()
    with pytest.raises(RuntimeError, match="after its session was closed"):
        last.numpy()


def test_a_tensor_is_read_by_other_libraries_where_it_lies(enlarging) -> None:
    with gives(np.full((3, 4), 5, np.float32)).open(enlarging, OPTIONS) as session:
        np.testing.assert_array_equal(np.from_dlpack(session.run({"x": X})["y"]), np.full((3, 4), 5))


def test_it_remembers_what_was_opened_run_and_closed_and_with_what(enlarging) -> None:
    backend = gives(np.zeros((3, 4), np.float32))
    options = SessionOptions(threads=3)
    with backend.open(enlarging, options) as session, session.bind() as binding:
        assert (backend.open_sessions, backend.open_bindings) == (1, 1)
        binding.run({"x": X})
        binding.run({"x": 2 * X})
    assert (backend.open_sessions, backend.open_bindings) == (0, 0)
    assert backend.log == [("open", "graph"), ("run", "graph"), ("run", "graph"), ("close", "graph")]
    assert [(name, float(feeds["x"][0, 0])) for name, feeds in backend.fed] == [("graph", 1), ("graph", 2)]
    assert [each.options for each in backend.sessions] == [options]


def test_it_passes_for_what_a_test_wants(enlarging) -> None:
    plain = FakeBackend({})
    assert (plain.on_device, plain.unavailable_because(), plain.supports("fp8")) == (False, None, True)
    assert plain.figures(enlarging, WANTED) == Figures(weight_bytes=7) and plain.memory_bytes(OPTIONS) > 10**6
    known = Figures(1, 2, 3)
    card = FakeBackend(
        {}, name="card", precisions=["bf16"], on_device=True, figures=lambda graph, wanted: known, memory=5
    )
    assert card.on_device and card.supports("bf16") and not card.supports("fp32")
    assert (card.figures(enlarging, WANTED), card.memory_bytes(OPTIONS), card.version()) == (
        known, 5, "card of functions"
    )  # fmt: skip
    broken = FakeBackend({"graph": lambda x: {}}, unavailable="it was unplugged; plug it in")
    with pytest.raises(BackendUnavailableError, match="fake: it was unplugged; plug it in"):
        broken.open(enlarging, OPTIONS)


def test_a_backend_itself_may_be_asked_for_in_place_of_a_name() -> None:
    backend = FakeBackend({}, precisions=["bf16"])
    assert list(backends_named(backend)) == [backend]
    assert choose_backend(backend, ["fp32", "bf16"]) == (backend, "bf16", [])
    with pytest.raises(BackendUnavailableError, match="fake: it does not run graphs in fp8"):
        choose_backend(backend, ["fp8"])


def test_code_that_goes_by_the_table_finds_the_fake_alone_for_a_while() -> None:
    table = dict(BACKENDS)
    one, other = FakeBackend({}, name="one", unavailable="it is not"), FakeBackend({}, name="other")
    with only_backends(one, other):
        assert list(BACKENDS) == ["one", "other"]
        assert choose_backend("auto", ["fp32"])[0] is other
        with pytest.raises(BackendUnavailableError, match="There are: one, other"):
            choose_backend("onnxruntime", ["fp32"])
    assert table == BACKENDS
