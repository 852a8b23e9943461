"""The seam between the runtime and whatever executes a graph.

Knows names, dtypes and shapes. Knows nothing of any library that implements it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from .errors import ShapeError

Host = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph. A string in `shape` is a symbol, or an expression of them, bound at run time."""

    name: str
    dtype: str  # a NumPy name: "float32", "int64", "uint8"
    shape: tuple[int | str, ...]


class Tensor(Protocol):
    """What a session returns: an array where the backend keeps it.

    The backend owns it. It stays valid until it is dropped or its session is closed, and may be fed to any session of
    the same backend without a copy.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str:
        """A NumPy name."""
        ...

    def row(self, index: int) -> Tensor:
        """One entry of the leading axis, without a copy where the backend can. Keeps what it needs of this tensor."""
        ...

    def numpy(self) -> Host:
        """The values on the host: C-contiguous, the caller's own, valid for ever."""
        ...


Feeds = Mapping[str, "Host | Tensor"]


@dataclass(frozen=True)
class SessionOptions:
    """How a session may use the machine. `None` leaves the choice to the backend, which makes it by measurement."""

    threads: int | None = None


class Session(ABC):
    """One loaded graph, ready to run.

    Any thread may run or cancel it; a backend that cannot run two at once makes the second wait. `inputs` and `outputs`
    are in the order of the graph.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @abstractmethod
    def run(self, feeds: Feeds, fetch: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Runs the graph once.

        Args:
            feeds: every input by name; host arrays of any layout, or tensors of the same backend.
            fetch: the outputs that are wanted, all when omitted.

        Raises:
            ShapeError: a name, dtype or shape that the graph does not have, before anything runs.
            GraphError: the graph fails on these feeds.
            OutOfMemoryError: the backend ran out of memory.
            CancelledError: `cancel` was called while it ran.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Stops every `run` in progress as soon as the backend can. Does nothing when there is none."""

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

    @abstractmethod
    def unavailable_because(self) -> str | None:
        """Why this backend cannot run here, with the next step; `None` when it can. Asking loads no GPU library."""

    @abstractmethod
    def version(self) -> str:
        """Name and version of the library that executes, for plans and engine identities."""

    @abstractmethod
    def supports(self, precision: str) -> bool:
        """Whether graphs of this precision ("fp32", "int8", "bf16", "fp8", ...) run here."""

    @abstractmethod
    def open(self, graph: Path, options: SessionOptions) -> Session:
        """Loads an ONNX graph whose bundle has been verified. The caller closes the session.

        Raises:
            GraphError: it is damaged, or no graph at all.
            BackendUnavailableError: it asks for what this backend does not have.
            OutOfMemoryError: it does not fit.
        """


def check_feeds(inputs: Sequence[TensorSpec], feeds: Feeds) -> None:
    """Refuses feeds that the graph does not take. Sizes behind symbols must agree between inputs."""
    given, wanted = set(feeds), {spec.name for spec in inputs}
    if given != wanted:
        raise ShapeError(
            f"the graph takes {sorted(wanted)}; missing {sorted(wanted - given)}, unknown {sorted(given - wanted)}"
        )
    bound: dict[str, int] = {}
    for spec in inputs:
        value = feeds[spec.name]
        shape = tuple(value.shape)
        if str(value.dtype) != spec.dtype:
            raise ShapeError(f"input {spec.name!r} is {value.dtype}, the graph takes {spec.dtype}")
        agrees = len(shape) == len(spec.shape) and all(
            size == wanted if isinstance(wanted, int) else bound.setdefault(wanted, size) == size
            for size, wanted in zip(shape, spec.shape, strict=True)
        )
        if not agrees:
            raise ShapeError(f"input {spec.name!r} has shape {shape}, the graph takes {spec.shape} with {bound}")


def chosen_outputs(outputs: Sequence[TensorSpec], fetch: Sequence[str] | None) -> list[str]:
    """The names of the outputs to return: all, or those of `fetch`, which must exist."""
    there = [spec.name for spec in outputs]
    if fetch is None:
        return there
    if unknown := sorted(set(fetch) - set(there)):
        raise ShapeError(f"the graph gives {there}; unknown {unknown}")
    return list(fetch)
