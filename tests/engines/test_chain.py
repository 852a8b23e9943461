"""What a chain runs, and what it offers to its parts. The contract suite holds it to what every session promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope_engines.chain import Chain
from mutoscope_engines.errors import CancelledError, GraphError, ShapeError
from mutoscope_engines.session import Binding, Feeds, Places, Session, SessionOptions, Tensor, TensorSpec
from mutoscope_engines.testing import FakeBackend

X, A, B = (np.random.default_rng(seed).standard_normal(30, np.float32) for seed in range(3))
FEEDS = {"x": X, "a": A, "b": B}
EXPECTED = 2 * (A + X**2) * B - A


@pytest.fixture
def ran() -> list[int]:
    """The numbers of the parts, each time that one runs."""
    return []


@pytest.fixture
def backend(chained: list[Path], ran: list[int]) -> FakeBackend:
    """What the five parts of `chained` compute."""
    functions: list[Callable[..., dict[str, Any]]] = [
        lambda x: {"once": x * x},
        lambda a, once: {"h1": a + once},
        lambda h1, b: {"h2": h1 * b},
        lambda h2: {"h3": h2 + h2},
        lambda h3, a: {"y": h3 - a},
    ]

    def noted(number: int, function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        return lambda **feeds: ran.append(number) or function(**feeds)  # type: ignore[func-returns-value]

    return FakeBackend(
        {
            f"{path.parent.name}/{path.name}": noted(number, function)
            for number, (path, function) in enumerate(zip(chained, functions, strict=True))
        }
    )


@pytest.fixture
def chain(backend: FakeBackend, chained: list[Path]) -> Chain:
    return Chain([backend.open(part, SessionOptions()) for part in chained])


def test_a_part_is_not_run_again_for_what_another_was_fed(chain: Chain, ran: list[int]) -> None:
    with chain, chain.bind() as binding:
        for names, expected in (("xab", [0, 1, 2, 3, 4]), ("b", [2, 3, 4]), ("", []), ("x", [0, 1, 2, 3, 4])):
            binding.run({name: FEEDS[name] for name in names})
            assert ran == expected
            ran.clear()


def test_after_a_run_that_failed_a_chain_begins_anew(chain: Chain, backend: FakeBackend) -> None:
    def fail(**_: Any) -> Any:
        raise GraphError("failed")

    third = "graph/model.3.onnx"
    works = backend.graphs[third]
    with chain, chain.bind() as binding:
        binding.run(FEEDS)
        backend.graphs[third] = fail
        with pytest.raises(GraphError, match="failed"):
            binding.run({"x": B})
        backend.graphs[third] = works
        with pytest.raises(ShapeError, match=r"missing \['a', 'b'\]"):
            binding.run({"x": X})
        np.testing.assert_allclose(binding.run(FEEDS)["y"].numpy(), EXPECTED, rtol=1e-5, atol=1e-5)


def test_a_chain_that_is_cancelled_between_two_parts_runs_no_further(
    chain: Chain, backend: FakeBackend, ran: list[int]
) -> None:
    second = "graph/model.2.onnx"
    works = backend.graphs[second]

    def cancel_and_finish(**feeds: Any) -> Any:
        chain.cancel()  # as another thread would
        return works(**feeds)

    backend.graphs[second] = cancel_and_finish
    with chain, chain.bind() as binding, pytest.raises(CancelledError):
        binding.run(FEEDS)
    assert ran == [0, 1]


class SameTensor(Session):
    """A part that gives one tensor under all the names of its outputs, and notes the places that it is offered."""

    def __init__(self, takes: str, gives: str) -> None:
        self.inputs = tuple(TensorSpec(name, "float32", ("n",)) for name in takes)
        self.outputs = tuple(TensorSpec(name, "float32", ("n",)) for name in gives)
        self.tensor: Any = FakeTensor()
        self.offered: list[Places] = []

    def bind(self) -> Binding:
        return OneTensorBinding(self)

    def bind_at(self, places: Places) -> Binding:
        self.offered.append(places)
        return self.bind()

    def cancel(self) -> None: ...

    def close(self) -> None: ...


class OneTensorBinding(Binding):
    def __init__(self, session: SameTensor) -> None:
        self._session = session

    def run(self, feeds: Feeds) -> dict[str, Tensor]:
        return {spec.name: self._session.tensor for spec in self._session.outputs}

    def close(self) -> None: ...


class FakeTensor:
    shape, dtype = (3,), "float32"


def test_spare_memory_is_offered_once_under_however_many_names() -> None:
    first, second, third, fourth = parts = (
        SameTensor("x", "ab"), SameTensor("ab", "c"), SameTensor("c", "d"), SameTensor("d", "y"),
    )  # fmt: skip
    with Chain(parts) as chain, chain.bind() as binding:
        binding.run({"x": X})
    (places,) = third.offered
    assert [tensor is first.tensor for tensor in places.spare] == [True]
    assert places.inputs == {"c": second.tensor}
    assert list(fourth.offered[0].spare) == []  # what leaves the chain is written to no place that others use
