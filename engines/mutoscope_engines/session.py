"""The seam between the runtime and whatever executes a graph.

Knows names, dtypes and shapes. Knows nothing of any library that implements it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from .cache.shipped import ShippedEngines
from .errors import ShapeError
from .system.machine import memory_bytes

Host = NDArray[Any]
Shapes = Mapping[str, tuple[int, ...]]  # by the name of the input


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph. A string in `shape` is a symbol, or an expression of them, bound at run time."""

    name: str
    dtype: str  # a NumPy name: "float32", "int64", "uint8"
    shape: tuple[int | str, ...]


class Tensor(Protocol):
    """What a run returns: an array where the backend keeps it.

    The backend owns it. It is valid until its binding runs again or is closed, or its session is, and may be fed to any
    session of the same backend without passing through host memory.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes, as numbers."""
        ...

    @property
    def dtype(self) -> str:
        """A NumPy name."""
        ...

    def row(self, index: int) -> Tensor:
        """One entry of the leading axis, without a copy where the backend can. Valid as long as this tensor is, and
        keeps what it needs of it."""
        ...

    def numpy(self) -> Host:
        """The values on the host: C-contiguous, the caller's own, valid for ever."""
        ...


Feeds = Mapping[str, "Host | Tensor"]


@dataclass(frozen=True)
class EngineWanted:
    """What an engine must have been built from, and for."""

    precision: str
    files: Mapping[str, str]  # SHA-256 of the graph and its weights, by name in their folder
    shapes: Shapes  # that it must take; of an input that is not named, any
    stored_bytes: int  # of the graph and its weights
    shipped: ShippedEngines | None = None  # engines that came with the graph, and that the caller trusts


@dataclass(frozen=True)
class Figures:
    """The memory that a graph takes on a device, without its inputs and outputs."""

    weight_bytes: int
    streamable_bytes: int = 0  # of the weights, those that can stay in host memory, or on a CPU in their file
    activation_bytes: int | None = None  # while it runs at the largest shapes; `None` where the backend cannot know
    largest: Shapes | None = None  # for which that was found


@dataclass(frozen=True)
class SessionOptions:
    """How a session may use the machine. `None` leaves the choice to the backend, which makes it by measurement."""

    threads: int | None = None
    stream: int | None = None  # handle of a caller's CUDA stream, which outlives the backend; one of its own if `None`
    cuda_graphs: bool = True  # whether what runs again is captured and replayed
    streamed_weight_bytes: int = 0  # of the weights stay where they come from, and are read there while the graph runs
    runs_once: bool = False  # so that what makes a second run faster is not worth time and memory
    engine: EngineWanted | None = None  # for backends that run engines instead of graphs


@dataclass(frozen=True)
class Places:
    """Memory of other bindings of a backend, which a binding may use in place of its own."""

    inputs: Mapping[str, Tensor]  # where these inputs will always be, to be read there
    spare: Sequence[Tensor]  # free while it runs, for outputs that are alike; it gives them as they are


class Binding(ABC):
    """One user's way through a session: inputs that stay as they were fed, and outputs, at addresses that stay.

    One thread at a time uses a binding; several bindings of a session may be in use at once.
    """

    @abstractmethod
    def run(self, feeds: Feeds) -> dict[str, Tensor]:
        """Runs the graph once; gives all its outputs, valid until this binding runs again or is closed.

        Args:
            feeds: inputs by name: host arrays of any layout, tensors of the same backend, this binding's own outputs
                among them. They are copied, and an input that is not named keeps what it was fed before. The first
                run names all, and settles their sizes.

        Raises:
            ShapeError: a name, dtype or shape that the graph does not have, or another than before; nothing ran.
            GraphError: the graph fails on these feeds.
            OutOfMemoryError: the backend ran out of memory.
            CancelledError: `Session.cancel` was called while it ran.
        """

    @abstractmethod
    def close(self) -> None:
        """Gives its memory back to the session, for the next binding. Closing it again does nothing."""

    def __enter__(self) -> Binding:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Session(ABC):
    """One loaded graph, ready to run.

    Any thread may bind or cancel it; a backend that cannot run two at once makes the second wait. `inputs` and
    `outputs` are in the order of the graph.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @abstractmethod
    def bind(self) -> Binding:
        """Opens a way to run the graph again and again at one set of sizes."""

    def bind_at(self, places: Places) -> Binding:
        """As `bind`; a backend that copies what it is fed need not use the places."""
        return self.bind()

    def run(self, feeds: Feeds) -> dict[str, Tensor]:
        """Runs the graph once, on a binding of its own: its outputs are valid until they are dropped."""
        return self.bind().run(feeds)

    @abstractmethod
    def cancel(self) -> None:
        """Stops every run in progress as soon as the backend can; one that cannot lets them finish. Does nothing
        when there is none."""

    @abstractmethod
    def close(self) -> None:
        """Frees the graph and its memory. Running it afterwards is a RuntimeError; closing it again does nothing."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Backend(ABC):
    """What executes graphs. One file a backend, one row in `backends.BACKENDS`."""

    name: str
    on_device: bool = False  # whether its tensors lie on a GPU
    runs_engines: bool = False  # whether it runs what was compiled of a graph, and never opens the graph

    @property
    def preferred_precision(self) -> str | None:
        """What it runs of a bundle before the first that it can; `None` for no other than the first."""
        return None

    @abstractmethod
    def unavailable_because(self) -> str | None:
        """Why this backend cannot run here, with the next step; `None` when it can. Asking loads a driver at most."""

    @abstractmethod
    def version(self) -> str:
        """Name and version of the library that executes, for plans and engine identities."""

    @abstractmethod
    def supports(self, precision: str) -> bool:
        """Whether graphs of this precision ("fp32", "int8", "bf16", "fp8", ...) run here."""

    def is_slower(self, precision: str) -> bool:
        """Whether it was measured to be slower here than backends after it in the table, so that it is taken only where
        none of them runs, or by name."""
        return False

    def memory_bytes(self, options: SessionOptions) -> int:
        """What graphs may take here: of the machine, or what is free on the device."""
        return memory_bytes()

    def snapshot(self) -> Backend:
        """This backend as it is now, for one plan: what `figures` looks up on disk is read once for all graphs."""
        return self

    def figures(self, graph: Path, wanted: EngineWanted) -> Figures:
        """The memory that a graph takes, without opening it.

        Raises:
            BackendUnavailableError: there is no engine of it; says how to build one.
        """
        return Figures(weight_bytes=wanted.stored_bytes)

    def settings(self, options: SessionOptions) -> dict[str, str]:
        """What was decided about the library beyond the options, for plans."""
        return {}

    def shares_by(self, options: SessionOptions) -> Hashable:
        """What two options for a graph must have in common for one session to serve both."""
        return None

    @abstractmethod
    def open(self, graph: Path, options: SessionOptions) -> Session:
        """Loads an ONNX graph whose bundle has been verified. The caller closes the session.

        Raises:
            GraphError: it is damaged, or no graph at all.
            BackendUnavailableError: it asks for what this backend does not have.
            OutOfMemoryError: it does not fit.
        """


def check_names(inputs: Sequence[TensorSpec], feeds: Mapping[str, Any], *, first: bool) -> None:
    """Refuses names that the graph does not have; a `first` run takes them all."""
    given, wanted = set(feeds), {spec.name for spec in inputs}
    missing, unknown = wanted - given if first else set(), given - wanted
    if missing or unknown:
        raise ShapeError(f"the graph takes {sorted(wanted)}; missing {sorted(missing)}, unknown {sorted(unknown)}")


def check_feeds(inputs: Sequence[TensorSpec], feeds: Feeds, settled: Shapes | None = None) -> None:
    """Refuses feeds that the graph does not take. Sizes behind symbols must agree between inputs.

    Args:
        settled: the shapes of a binding's first run, to which later ones keep; without them all inputs are needed.
    """
    check_names(inputs, feeds, first=not settled)
    bound: dict[str, int] = {}
    for spec in inputs:
        if spec.name not in feeds:
            continue
        value = feeds[spec.name]
        shape = tuple(value.shape)
        if str(value.dtype) != spec.dtype:
            raise ShapeError(f"input {spec.name!r} is {value.dtype}; the graph takes {spec.dtype}")
        if settled and shape != settled[spec.name]:
            raise ShapeError(
                f"input {spec.name!r} has shape {shape}; this binding began with {settled[spec.name]}, so "
                "bind the session again for other sizes"
            )
        agrees = len(shape) == len(spec.shape) and all(
            size == wanted if isinstance(wanted, int) else bound.setdefault(wanted, size) == size
            for size, wanted in zip(shape, spec.shape, strict=True)
        )
        if not agrees:
            raise ShapeError(f"input {spec.name!r} has shape {shape}; the graph takes {spec.shape} with {bound}")
