"""The errors of this project: a small tree, each with a cause, a next step and the exit code of the command line."""

from __future__ import annotations

from typing import ClassVar

TAKE_LESS_MEMORY = "ask for a smaller height, width or num_frames, or close other programs"


class MutoscopeError(Exception):
    """Base of every error a user can meet. `exit_code` is what the command line returns for it."""

    exit_code: ClassVar[int] = 1


class BackendUnavailableError(MutoscopeError):
    """No backend, or not the one asked for, can run here."""

    exit_code = 4


class OutOfMemoryError(MutoscopeError):
    """The backend could not get the memory it needs."""

    exit_code = 5


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
