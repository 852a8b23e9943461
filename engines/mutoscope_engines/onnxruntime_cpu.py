"""ONNX Runtime on the CPU: the backend that is always there.

Knows ONNX Runtime. Its settings are the library's own but for the threads, the log and int8 on processors without VNNI;
`benchmarks/session_settings.py` measures the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as OrtNotImplemented

from .errors import BackendUnavailableError, CancelledError, GraphError, MutoscopeError, OutOfMemoryError
from .machine import usable_cores
from .session import Backend, Feeds, Host, Session, SessionOptions, Tensor, TensorSpec, check_feeds, chosen_outputs

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class OnnxRuntimeCpu(Backend):
    name = "onnxruntime"

    def unavailable_because(self) -> str | None:
        return None

    def version(self) -> str:
        return f"onnxruntime {ort.__version__}"

    def supports(self, precision: str) -> bool:
        return precision in ("fp32", "int8")

    def open(self, graph: Path, options: SessionOptions) -> Session:
        return OnnxRuntimeSession(graph, options)


class OrtTensor:
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
    def __init__(self, graph: Path, options: SessionOptions) -> None:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads or usable_cores()
        # It would take quantizations to FP8 for those to int8, and put operators there that do not know the type.
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
        if not _has_vnni():
            # Without VNNI, sums of two uint8 x int8 products saturate at 16 bits. This makes int8 weights uint8 (with
            # the zero point moved alike), whose products do not; with VNNI it would only cost a quarter of the speed.
            settings.add_session_config_entry("session.x64quantprecision", "1")
        settings.log_severity_level = 4  # not even errors: they reach the caller as exceptions
        self._running: set[Any] = set()
        try:
            self._session: Any = ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise _translated(error, f"loading {graph.parent.name}/{graph.name}") from error
        self.inputs = tuple(map(_spec, self._session.get_inputs()))
        self.outputs = tuple(map(_spec, self._session.get_outputs()))

    def run(self, feeds: Feeds, fetch: Sequence[str] | None = None) -> dict[str, Tensor]:
        session = self._session
        if session is None:
            raise RuntimeError("this session is closed; open the graph again to run it")
        check_feeds(self.inputs, feeds)
        names = chosen_outputs(self.outputs, fetch)
        values = {name: _ort_value(value) for name, value in feeds.items()}
        run_options = ort.RunOptions()
        self._running.add(run_options)
        # In a thread of its own, because a signal such as Ctrl-C is only handled between the calls of this one.
        with ThreadPoolExecutor(1) as executor:
            pending = executor.submit(session.run_with_ort_values, names, values, run_options)
            try:
                results = pending.result()
            except Exception as error:
                if run_options.terminate:
                    raise CancelledError("the run was cancelled") from error
                raise _translated(error, "running a graph") from error
            finally:
                run_options.terminate = True
                self._running.discard(run_options)
        return {name: OrtTensor(value) for name, value in zip(names, results, strict=True)}

    def cancel(self) -> None:
        for run_options in list(self._running):
            run_options.terminate = True

    def close(self) -> None:
        self._session = None


@cache
def _has_vnni() -> bool:
    """Whether this CPU says that it adds products of uint8 and int8 in 32 bits."""
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _ort_value(fed: Host | Tensor) -> Any:
    if isinstance(fed, OrtTensor):
        return fed.value
    return ort.OrtValue.ortvalue_from_numpy(np.asarray(fed, order="C"))


def _spec(node: Any) -> TensorSpec:
    if node.type not in DTYPES:
        raise GraphError(f"{node.name!r} of the graph is a {node.type}; allowed: {', '.join(DTYPES)}")
    shape = tuple(f"{node.name}.{axis}" if size is None else size for axis, size in enumerate(node.shape))
    return TensorSpec(node.name, DTYPES[node.type], shape)


def _translated(error: Exception, doing: str) -> MutoscopeError:
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, MemoryError) or "bad_alloc" in str(error) or "Failed to allocate memory" in str(error):
        return OutOfMemoryError(
            f"out of memory while {doing} on the CPU: {message}; "
            "ask for a smaller height, width or num_frames, or close other programs"
        )
    if isinstance(error, OrtNotImplemented):
        return BackendUnavailableError(f"ONNX Runtime cannot run this on the CPU: {message}; try another precision")
    return GraphError(f"ONNX Runtime failed while {doing}: {message}; check with `mutoscope verify`, or export again")
