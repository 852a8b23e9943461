"""ONNX Runtime on the CPU: the backend that is always there.

Its settings are the library's own where they were no worse than any other in `benchmarks/session_settings.py`: all
optimizations, an arena, weights packed where a graph runs again and none stream, and their file mapped into memory,
where reading it took half as much memory again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CancelledError
from ..session import (
    Backend,
    Binding,
    EngineWanted,
    Feeds,
    Figures,
    Host,
    Session,
    SessionOptions,
    Tensor,
    check_feeds,
)
from ..system.machine import usable_cores
from ..system.own_thread import fulfil
from .library import DTYPES, open_session, ort, specs, translated

# Optimizers of the library. A sum fused with the norm after it takes three times as long as the two by themselves.
WITHOUT = ("SkipLayerNormFusion",)
# By default a thread without work spins for milliseconds, on a core that the last one with work may be waiting for, and
# each gets an equal share beforehand: docs/decisions/0021.
THREADING = {"session.intra_op.allow_spinning": "0", "session.dynamic_block_base": "4"}
POLL_S = 0.1  # how long Ctrl-C may wait on Windows, where no signal ends a wait


class OnnxRuntimeCpu(Backend):
    """The library's CPU provider, for graphs in float32 and int8."""

    name = "onnxruntime"

    def unavailable_because(self) -> str | None:
        return None

    def version(self) -> str:
        return f"onnxruntime {ort.__version__}"

    def supports(self, precision: str) -> bool:
        return precision in ("fp32", "int8")

    def figures(self, graph: Path, wanted: EngineWanted) -> Figures:
        """Weights that are not packed lie in the mapped file, whose pages the system takes back when it needs them."""
        found = super().figures(graph, wanted)
        return replace(found, streamable_bytes=found.weight_bytes)

    def settings(self, options: SessionOptions) -> dict[str, str]:
        return {"memory pattern": "off"}

    def open(self, graph: Path, options: SessionOptions) -> Session:
        return OnnxRuntimeSession(graph, options)


class OrtTensor(Tensor):
    """An `OrtValue`, which ONNX Runtime takes back without a copy."""

    def __init__(self, value: Any) -> None:
        self.value = value

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape())

    @property
    def dtype(self) -> str:
        return DTYPES[self.value.data_type()]

    def row(self, index: int) -> Tensor:
        return OrtTensor(ort.OrtValue.ortvalue_from_numpy(self.value.numpy()[index, ...]))

    def numpy(self) -> Host:
        return np.array(self.value.numpy(), order="C")


class OnnxRuntimeSession(Session):
    """A graph that the library loaded.

    Raises:
        GraphError: the library refuses it.
        OutOfMemoryError: it does not fit.
    """

    def __init__(self, graph: Path, options: SessionOptions) -> None:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads or usable_cores()
        # A plan of the arena for each set of sizes took 2 to 25 % more memory at its peak, and made no run faster.
        settings.enable_mem_pattern = False
        # It would take quantizations to FP8 for those to int8, and put operators there that do not know the type.
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
        for name, value in THREADING.items():
            settings.add_session_config_entry(name, value)
        if options.runs_once or options.streamed_weight_bytes:
            settings.add_session_config_entry("session.disable_prepacking", "1")
        self._running: set[Any] = set()
        self._session: Any = open_session(graph, settings, ["CPUExecutionProvider"], "CPU", WITHOUT)
        self.inputs = specs(self._session.get_inputs())
        self.outputs = specs(self._session.get_outputs())

    def bind(self) -> Binding:
        return OnnxRuntimeBinding(self)

    def run_values(self, values: dict[str, Any]) -> dict[str, Tensor]:
        """Every input in, every output out, as `OrtValue`s."""
        session = self._session
        if session is None:
            raise RuntimeError("this session is closed; open the graph again to run it")
        names = [spec.name for spec in self.outputs]
        run_options = ort.RunOptions()
        self._running.add(run_options)
        try:
            results = _interruptibly(partial(session.run_with_ort_values, names, values, run_options), run_options)
        except Exception as error:
            if run_options.terminate:
                raise CancelledError("the run was cancelled") from error
            raise translated(error, "running a graph", "CPU") from error
        finally:
            self._running.discard(run_options)
        return {name: OrtTensor(value) for name, value in zip(names, results, strict=True)}

    def cancel(self) -> None:
        for run_options in list(self._running):
            run_options.terminate = True

    def close(self) -> None:
        self._session = None


class OnnxRuntimeBinding(Binding):
    """Keeps what was fed. Its outputs are new in every run, and so stay valid for longer than they must."""

    def __init__(self, session: OnnxRuntimeSession) -> None:
        self._session = session
        self._values: dict[str, Any] = {}

    def run(self, feeds: Feeds) -> dict[str, Tensor]:
        settled = {name: tuple(value.shape()) for name, value in self._values.items()}
        check_feeds(self._session.inputs, feeds, settled)
        self._values |= {name: _ort_value(value) for name, value in feeds.items()}
        return self._session.run_values(self._values)

    def close(self) -> None:
        self._values = {}


def _interruptibly(run: Callable[[], Any], run_options: Any) -> Any:
    """Runs in a thread beside the main one, because a signal such as Ctrl-C is only handled between the calls of that.

    A plain thread: an executor starts none once the main thread has ended, while others may still make videos.
    """
    if threading.current_thread() is not threading.main_thread():
        return run()
    pending: Future[Any] = Future()
    thread = threading.Thread(target=fulfil, args=(pending, run))
    try:
        thread.start()
    except RuntimeError:  # at exit, or beyond the system's limit of threads
        return run()
    try:
        while not pending.done():
            wait([pending], POLL_S)
    except BaseException:
        run_options.terminate = True
        raise
    finally:
        thread.join()  # not before: interrupted in it, Python 3.11 takes a thread for ended that is not
    return pending.result()


def _ort_value(fed: Host | Tensor) -> Any:
    if isinstance(fed, OrtTensor):
        return fed.value
    return ort.OrtValue.ortvalue_from_numpy(np.array(fed, order="C"))  # a copy: the caller may change its own
