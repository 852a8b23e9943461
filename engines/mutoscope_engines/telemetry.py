"""Imports libraries that report to their makers when they are imported, so that they do not.

The only place that knows which they are and how each is told. Both decide once, while they are imported, for the life
of the process: so the environment is as it was as soon as the import is over. See docs/decisions/0015-telemetry.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_VARIABLE = "ORT_DISABLE_TELEMETRY"
OPT_OUT = {_VARIABLE: "1"}  # for the environment of processes that Mutoscope starts
_OFF = "off"
_TOO_LATE = "left as it was: this program imported the library before Mutoscope did"
_OPENVINO_TELEMETRY = "openvino_telemetry"
_states: dict[str, str] = {}


@cache
def onnxruntime() -> Any:
    """The module `onnxruntime`, without telemetry: from 1.29 on, importing it leaves an id and a queue of events in the
    user's home, and a thread sends them. To be called in place of importing it."""
    too_late = "onnxruntime" in sys.modules and os.environ.get(_VARIABLE) != "1"
    with _variable(_VARIABLE, "1"):
        import onnxruntime
        from onnxruntime import disable_telemetry_events  # an ImportError, where the installation is broken
    if not too_late:
        disable_telemetry_events()  # on Windows, which does not read the variable
    _states["onnxruntime"] = f"{_TOO_LATE}; set {_VARIABLE}=1 before that" if too_late else _OFF
    return onnxruntime


@cache
def openvino() -> Any:
    """The module `openvino`, without telemetry: importing it would send an event to its makers and leave an id in the
    user's home, unless its telemetry is missing. To be called in place of importing it."""
    too_late = "openvino" in sys.modules
    known = _OPENVINO_TELEMETRY in sys.modules  # of a program that wants it
    if not known:
        sys.modules[_OPENVINO_TELEMETRY] = None  # type: ignore[assignment]  # importing it fails then
    try:
        import openvino
    finally:
        if not known:
            del sys.modules[_OPENVINO_TELEMETRY]
    _states["openvino"] = _TOO_LATE if too_late or known else _OFF
    return openvino


def states() -> dict[str, str]:
    """For each of these libraries that was taken from here, whether its telemetry is off, in words for a person."""
    return dict(_states)


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Sets a variable of the environment for a while. Native code reads it, too: `os.environ` calls `putenv`."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
