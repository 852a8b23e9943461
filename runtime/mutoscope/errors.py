"""The errors of the runtime, beside those of the engines. Every one names its cause and the next step.

MutoscopeError
├── RequestError             2    what was asked for cannot be made
├── OutputError              2    the video cannot be written where it should go
├── TargetError              2    engines were asked for that cannot be: target, precision or size
├── BundleError              3    the bundle is missing, damaged, unsafe or unknown
├── GraphError               3    a graph of the bundle cannot be loaded or run as it is
├── ProvenanceError          3    a file was changed after it was signed, or a key to sign with is unsafe
├── ShapeError               3    the bundle contradicts itself
├── EngineError              3    an engine cannot be built, or one that is there must not be loaded
├── BackendUnavailableError  4
│   └── EngineMissingError   4    no engine was built for what is to run
├── OutOfMemoryError         5
├── NumericalError           6    NaN or Inf in a denoising step
└── CancelledError         130
"""

from __future__ import annotations

from mutoscope_engines.errors import (
    BackendUnavailableError,
    CancelledError,
    EngineError,
    EngineMissingError,
    GraphError,
    MutoscopeError,
    OutOfMemoryError,
    ShapeError,
    TargetError,
)

__all__ = [
    "BackendUnavailableError",
    "BundleError",
    "CancelledError",
    "EngineError",
    "EngineMissingError",
    "GraphError",
    "MutoscopeError",
    "NumericalError",
    "OutOfMemoryError",
    "OutputError",
    "ProvenanceError",
    "RequestError",
    "ShapeError",
    "TargetError",
]


SMALLER_VIDEO = "ask for a smaller height, width or num_frames"  # where memory runs out
EXPORT_AGAIN = "export it again with overwrite: mutoscope export CHECKPOINT BUNDLE"  # where a bundle is not right


class RequestError(MutoscopeError):
    """The request cannot be met: says what was given, what is allowed and the nearest that is."""

    exit_code = 2


class OutputError(MutoscopeError):
    """The video cannot be written: no such folder, no permission, no space, an unknown format."""

    exit_code = 2


class BundleError(MutoscopeError):
    """The bundle is refused before any of it reaches a backend."""

    exit_code = 3


class ProvenanceError(MutoscopeError):
    """A signed file is not as it was signed, or the key to sign with is unsafe or not fit."""

    exit_code = 3


class NumericalError(MutoscopeError):
    """A denoising step gave NaN or Inf; names the step."""

    exit_code = 6
