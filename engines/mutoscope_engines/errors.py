"""The errors of this project: a small tree, each with a cause, a next step and the exit code of the command line."""

from __future__ import annotations

from typing import ClassVar


class MutoscopeError(Exception):
    """Base of every error a user can meet. `exit_code` is what the command line returns for it."""

    exit_code: ClassVar[int] = 1


class BackendUnavailableError(MutoscopeError):
    """No backend, or not the one asked for, can run here."""

    exit_code = 4


class OutOfMemoryError(MutoscopeError):
    """The backend could not get the memory it needs."""

    exit_code = 5


def out_of_memory(doing: str, cause: object, *, on_device: bool = False) -> OutOfMemoryError:
    """The error for memory that ran out, with what makes room; the same words wherever it happens.

    Args:
        doing: what went on, such as "running a graph".
        cause: what the library says.
        on_device: whether it was memory of a GPU.
    """
    where, advice = ("GPU memory", "lower memory_limit, or ") if on_device else ("memory", "")
    return OutOfMemoryError(f"out of {where} while {doing}: {cause}; {advice}close other programs")


class CancelledError(MutoscopeError):
    """The caller, or Ctrl-C, stopped the run."""

    exit_code = 130


class GraphError(MutoscopeError):
    """A graph cannot be loaded or run as it is: damaged, against ONNX's rules, or not there."""

    exit_code = 3


class ShapeError(MutoscopeError):
    """A session was fed something other than its graph takes: a bug in the caller, or in the bundle."""

    exit_code = 3


class TargetError(MutoscopeError):
    """Engines were asked for that cannot be: an unknown target, or a precision or size that it does not have."""

    exit_code = 2


class EngineError(MutoscopeError):
    """An engine cannot be built from a graph, or one that is there must not be loaded."""

    exit_code = 3


class EngineMissingError(BackendUnavailableError):
    """The cache holds no engine that serves; says what the nearest lacks and how to build one."""
