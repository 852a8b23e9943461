"""A backend whose graphs are plain functions over NumPy arrays, to test what uses Mutoscope without a network or a GPU.

    def denoise(*, latents, state, timestep, prompt_embeds, guidance_weights, solver_a, solver_b):
        velocity = latents
        return {"next_state": ..., "velocity_peak": np.float32(1)}

    backend = FakeBackend({"denoiser": denoise, ...})
    with Pipeline.load(bundle, backend=backend) as pipeline: ...

It reads from each ONNX file what the graph takes and gives, and holds callers and functions to it: names, types, and
sizes, symbols included. The functions stand for the rest of the file. It is stricter than backends with a library: a
tensor that is read after its binding ran again raises. `tests/engines/test_contract.py` holds it to the contract of
`session.py` like every other backend.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .backends import BACKENDS
from .device.device import host_dtype
from .errors import BackendUnavailableError, CancelledError, GraphError, ShapeError
from .onnx_file import read_onnx_file
from .session import (
    Backend,
    Binding,
    EngineWanted,
    Feeds,
    Figures,
    Host,
    Session,
    SessionOptions,
    Shapes,
    Tensor,
    TensorSpec,
    check_feeds,
)
from .symbols import sized, symbols_of

Function = Callable[..., Mapping[str, Any]]
"""What a graph computes: its inputs by keyword as arrays, its outputs by name."""


class FakeBackend(Backend):
    """Graphs that are functions.

    A graph's name is that of its folder, which in a bundle is its role. All attributes may be changed between two runs.

    Args:
        graphs: the function of each graph, by its name, or by "folder/file" for one part of several. What a function
            raises reaches the caller of `run` as it is. When omitted, every graph gives zeros.
        precisions: those that it supports; all when omitted.
        on_device: whether it passes for a GPU: plans then count and choose as for one. Its tensors stay on the host.
        figures: what it says of the memory of a graph, by its path; what the bundle stores when omitted.
        memory: bytes that it says graphs may take here; those of the machine when omitted.
        unavailable: why it cannot run here, or `None`.

    Attributes:
        gives_zeros: whether a graph without a function gives zeros, as it declares its outputs.
        checks_outputs: whether what a function gives must be as the graph declares. Without it, a graph can be
            pretended that gives something else than it says.
        log: ("open", "run" or "close", the graph's name), in the order of events.
        fed: the graph's name and all its inputs, for each run.
        sessions: those that were opened, closed ones too.
    """

    def __init__(
        self,
        graphs: Mapping[str, Function] | None = None,
        *,
        name: str = "fake",
        precisions: Collection[str] | None = None,
        on_device: bool = False,
        figures: Callable[[Path, EngineWanted], Figures] | None = None,
        memory: int | None = None,
        unavailable: str | None = None,
    ) -> None:
        self.name, self.on_device, self.unavailable, self.memory = name, on_device, unavailable, memory
        self.graphs = dict(graphs or {})
        self.gives_zeros = graphs is None
        self.checks_outputs = True
        self.held: dict[str, threading.Event] = {}
        self.log: list[tuple[str, str]] = []
        self.fed: list[tuple[str, dict[str, Host]]] = []
        self.sessions: list[FakeSession] = []
        self._precisions, self._figures = precisions, figures

    def hold(self, name: str) -> threading.Event:
        """Makes runs of a graph last until their session is cancelled; gives an event that is set when one begins."""
        return self.held.setdefault(name, threading.Event())

    @property
    def open_sessions(self) -> int:
        """How many sessions were opened and not closed."""
        return sum(not session.closed for session in self.sessions)

    @property
    def open_bindings(self) -> int:
        """How many bindings were opened and not closed: the uses that go on."""
        return sum(session.open_bindings for session in self.sessions)

    def function_of(self, graph: Path) -> Function | None:
        """What a graph computes; `None` for zeros. To be overridden where it is found otherwise than by name.

        Raises:
            GraphError: there is none; lists those there are.
        """
        for name in (f"{graph.parent.name}/{graph.name}", graph.parent.name):
            if name in self.graphs:
                return self.graphs[name]
        if self.gives_zeros:
            return None
        raise GraphError(f"the fake backend has no function for {name}; it has: {', '.join(self.graphs) or 'none'}")

    def unavailable_because(self) -> str | None:
        return self.unavailable

    def version(self) -> str:
        return f"{self.name} of functions"

    def supports(self, precision: str) -> bool:
        return self._precisions is None or precision in self._precisions

    def memory_bytes(self, options: SessionOptions) -> int:
        return super().memory_bytes(options) if self.memory is None else self.memory

    def figures(self, graph: Path, wanted: EngineWanted) -> Figures:
        return super().figures(graph, wanted) if self._figures is None else self._figures(graph, wanted)

    def open(self, graph: Path, options: SessionOptions) -> Session:
        if self.unavailable is not None:
            raise BackendUnavailableError(f"{self.name}: {self.unavailable}")
        session = FakeSession(self, graph, options)
        self.sessions.append(session)
        self.log.append(("open", session.name))
        return session


class FakeSession(Session):
    """A graph that was opened.

    Attributes:
        name: of the graph's folder.
        options: with which it was opened.
        closed: whether it was closed.
        open_bindings: how many of its bindings were opened and not closed.
        lock: guards what several threads count.
    """

    def __init__(self, backend: FakeBackend, graph: Path, options: SessionOptions) -> None:
        declared = read_onnx_file(graph)
        backend.function_of(graph)  # refuses a graph without one when it is opened, not when it runs
        self.inputs, self.outputs = declared.inputs, declared.outputs
        self.backend, self.graph, self.options = backend, graph, options
        self.name = graph.parent.name
        self.closed = False
        self.open_bindings = 0
        self._running: list[threading.Event] = []  # one a run, set to cancel it
        self.lock = threading.RLock()  # a binding that is collected while it is held takes it, too

    def bind(self) -> FakeBinding:
        return FakeBinding(self)

    def compute(self, arrays: Mapping[str, Host]) -> dict[str, Host]:
        """Runs the function; gives what it computed, as arrays.

        Raises:
            ShapeError: it gave something else than the graph declares.
            CancelledError: the session was cancelled meanwhile.
        """
        backend = self.backend
        backend.log.append(("run", self.name))
        backend.fed.append((self.name, dict(arrays)))
        with self._cancellable() as cancelled:
            if (begun := backend.held.get(self.name)) is not None:
                begun.set()
                cancelled.wait()
            function = backend.function_of(self.graph)
            made = {} if cancelled.is_set() else self._zeros(arrays) if function is None else function(**arrays)
            if cancelled.is_set():
                raise CancelledError("the run was cancelled")
        values = {name: np.array(value, order="C") for name, value in made.items()}
        if backend.checks_outputs:
            self._refuse_undeclared(arrays, values)
        return values

    @contextmanager
    def _cancellable(self) -> Iterator[threading.Event]:
        cancelled = threading.Event()
        with self.lock:
            self._running.append(cancelled)
        try:
            yield cancelled
        finally:
            with self.lock:
                self._running.remove(cancelled)

    def _zeros(self, arrays: Mapping[str, Host]) -> dict[str, Host]:
        symbols: dict[str, int] = {}
        for spec in self.inputs:
            _settle(spec, arrays[spec.name].shape, symbols)
        return {spec.name: np.zeros(sized(spec.shape, symbols), host_dtype(spec.dtype)) for spec in self.outputs}

    def _refuse_undeclared(self, arrays: Mapping[str, Host], made: Mapping[str, Host]) -> None:
        if made.keys() != {spec.name for spec in self.outputs}:
            declared = sorted(spec.name for spec in self.outputs)
            raise ShapeError(f"the function of {self.name} gave {sorted(made)}; the graph declares {declared}")
        symbols: dict[str, int] = {}
        for spec in self.inputs:
            _settle(spec, arrays[spec.name].shape, symbols)
        for spec in self.outputs:
            value = made[spec.name]
            if str(value.dtype) != spec.dtype:
                raise ShapeError(
                    f"the function of {self.name} gave {spec.name!r} as {value.dtype}; the graph declares {spec.dtype}"
                )
            if not _settle(spec, value.shape, symbols):
                raise ShapeError(
                    f"the function of {self.name} gave {spec.name!r} in shape {value.shape}; the graph declares "
                    f"{spec.shape} with {symbols}"
                )

    def cancel(self) -> None:
        with self.lock:
            for cancelled in self._running:
                cancelled.set()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.backend.log.append(("close", self.name))


class FakeBinding(Binding):
    """Keeps what it was fed, and counts its runs, so that tensors of earlier ones can be told."""

    def __init__(self, session: FakeSession) -> None:
        self.session = session
        self.runs = 0
        self._fed: dict[str, Host] = {}
        self._closed = False
        with session.lock:
            session.open_bindings += 1

    def run(self, feeds: Feeds) -> dict[str, Tensor]:
        if self.session.closed:
            raise RuntimeError("this session is closed; open the graph again to run it")
        settled: Shapes = {name: value.shape for name, value in self._fed.items()}
        check_feeds(self.session.inputs, feeds, settled)
        fed = self._fed | {name: _array(value) for name, value in feeds.items()}
        self.runs += 1
        made = self.session.compute(fed)
        self._fed = fed
        return {name: FakeTensor(self, values) for name, values in made.items()}

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.runs += 1  # its tensors are no longer valid
            with self.session.lock:
                self.session.open_bindings -= 1

    def __del__(self) -> None:
        self.close()  # `Session.run` drops its binding


class FakeTensor(Tensor):
    """An output. Reading it once its binding ran again or was closed, or its session was, is a RuntimeError."""

    def __init__(self, binding: FakeBinding, values: Host) -> None:
        self._binding, self._values, self._run = binding, values, binding.runs

    @property
    def shape(self) -> tuple[int, ...]:
        return self._values.shape

    @property
    def dtype(self) -> str:
        return str(self._values.dtype)

    def row(self, index: int) -> FakeTensor:
        return FakeTensor(self._binding, np.asarray(self._valid()[index]))

    def numpy(self) -> Host:
        return np.array(self._valid(), order="C")

    def __dlpack__(self, **parameters: Any) -> Any:
        return self._valid().__dlpack__(**parameters)

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, index = self._values.__dlpack_device__()
        return int(kind), int(index)

    def _valid(self) -> Host:
        name = self._binding.session.name
        if self._binding.session.closed:
            raise RuntimeError(f"a tensor of {name} is used after its session was closed")
        if self._binding.runs != self._run:
            raise RuntimeError(f"a tensor of {name} is used after its binding ran again or was closed")
        return self._values


@contextmanager
def only_backends(*backends: Backend) -> Iterator[None]:
    """For the length of a `with`, all code finds these backends in the table, in this order, and no others."""
    table = dict(BACKENDS)
    BACKENDS.clear()
    for backend in backends:
        BACKENDS[backend.name] = lambda backend=backend: backend  # type: ignore[misc]
    try:
        yield
    finally:
        BACKENDS.clear()
        BACKENDS.update(table)


def _array(value: Host | Tensor) -> Host:
    return value.numpy() if isinstance(value, FakeTensor) else np.array(value, order="C")


def _settle(spec: TensorSpec, shape: tuple[int, ...], symbols: dict[str, int]) -> bool:
    """Whether a shape is the declared one. A symbol that has no size yet gets it; a product of such may be any."""
    if len(shape) != len(spec.shape):
        return False
    for size, declared in zip(shape, spec.shape, strict=True):
        names = symbols_of(declared)
        if names == [declared]:
            expected = symbols.setdefault(names[0], size)
        elif all(name in symbols for name in names):
            (expected,) = sized((declared,), symbols)
        else:
            continue
        if size != expected:
            return False
    return True
