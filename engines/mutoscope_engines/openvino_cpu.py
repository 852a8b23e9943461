"""OpenVINO on the CPU: ahead where the CPU multiplies bfloat16, and not behind in float32.

Its graphs in bf16 have float32 norms, softmax, residual sums and modulation by construction, and that is how they run:
the library is told to keep every type as it is, where its own hint for bfloat16 would round them all. A graph is
compiled for the sizes of one video, which takes a seventh off a step of the built-in model.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BackendUnavailableError, CancelledError, GraphError, MutoscopeError, out_of_memory
from .onnx_file import read_onnx_file
from .session import Backend, Binding, Feeds, Host, Session, SessionOptions, Shapes, Tensor, check_feeds
from .system.cpu_class import CpuClass, cpu_class
from .system.machine import usable_cores
from .telemetry import openvino as library

DEVICE = "CPU"
BF16 = "bf16-cpu"
# What it runs at least as fast as ONNX Runtime: docs/decisions/0011 and 0021. Nothing was measured on other classes.
FASTEST = {
    CpuClass.AMX: BF16,
    CpuClass.AVX512_BF16: BF16,
    CpuClass.AVX512_VNNI: "fp32",
    CpuClass.AVX2_VNNI: "fp32",
    CpuClass.AVX512: "fp32",
    CpuClass.AVX2: "fp32",
}
_POLL_MS = 100  # how long Ctrl-C may wait
_LONGEST_MESSAGE = 300


class OpenVinoCpu(Backend):
    """The library's CPU plugin, for graphs in float32 and bfloat16."""

    name = "openvino"

    @property
    def preferred_precision(self) -> str | None:
        return BF16 if FASTEST.get(cpu_class()) == BF16 else None

    def unavailable_because(self) -> str | None:
        found = find_spec("openvino")
        if found is None or found.origin is None:  # the last of a folder whose files are gone
            return "openvino is not installed; install it with: pip install 'mutoscope[openvino]'"
        return None

    def version(self) -> str:
        return f"openvino {version('openvino')}"

    def supports(self, precision: str) -> bool:
        # It runs int8 graphs, too, but multiplies their integers as float32.
        return precision in ("fp32", "bf16", "bf16-cpu")

    def is_slower(self, precision: str) -> bool:
        return precision != FASTEST.get(cpu_class())

    def settings(self, options: SessionOptions) -> dict[str, str]:
        return {"inference precision": "as in the graph"}

    def shares_by(self, options: SessionOptions) -> Hashable:
        return tuple(sorted(_sizes(options).items()))

    def open(self, graph: Path, options: SessionOptions) -> Session:
        return OpenVinoSession(graph, options)


class OpenVinoTensor(Tensor):
    """An `openvino.Tensor`."""

    def __init__(self, value: Any) -> None:
        self.value = value

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def dtype(self) -> str:
        return _dtype(self.value)

    def row(self, index: int) -> Tensor:
        shape = self.shape
        index = range(shape[0])[index]
        row = library().Tensor(self.value.element_type, [1, *shape[1:]])
        begin, end = [index, *(0 for _ in shape[1:])], [index + 1, *shape[1:]]
        library().Tensor(self.value, begin, end).copy_to(row)
        row.set_shape(shape[1:])
        return OpenVinoTensor(row)

    def numpy(self) -> Host:
        return np.array(self.value.data, order="C")


class OpenVinoSession(Session):
    """A graph compiled for the CPU, at the sizes that `options.engine` names, if any.

    Raises:
        GraphError: the library refuses it, or its weights lie outside its folder.
        BackendUnavailableError: the library is damaged.
        OutOfMemoryError: it does not fit.
    """

    def __init__(self, graph: Path, options: SessionOptions) -> None:
        file = read_onnx_file(graph)
        self.inputs, self.outputs = file.inputs, file.outputs
        settings = {
            "INFERENCE_NUM_THREADS": options.threads or usable_cores(),
            "INFERENCE_PRECISION_HINT": "f32",  # the types of the graph; every other value rounds what is float32
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            model = _core().read_model(graph)
            if sizes := _sizes(options):
                model.reshape(dict(sizes))
            self._compiled: Any = _core().compile_model(model, DEVICE, settings)
        except Exception as error:
            raise translated(error, f"loading {graph.parent.name}/{graph.name}") from error
        self._running: set[Any] = set()

    def bind(self) -> Binding:
        return OpenVinoBinding(self)

    def new_request(self) -> Any:
        """An `openvino.InferRequest`, for one binding.

        Raises:
            RuntimeError: the session was closed.
        """
        if self._compiled is None:
            raise RuntimeError("this session is closed; open the graph again to run it")
        return self._compiled.create_infer_request()

    def infer(self, request: Any) -> None:
        """Runs a request whose tensors are set.

        Raises:
            CancelledError: `cancel` was called meanwhile.
            GraphError: the graph fails on these tensors.
            OutOfMemoryError: the library ran out of memory.
            RuntimeError: the session was closed.
        """
        if self._compiled is None:
            raise RuntimeError("this session is closed; open the graph again to run it")
        self._running.add(request)
        try:
            request.start_async()
            # In turns, because a signal such as Ctrl-C is only handled between two calls.
            while not request.wait_for(_POLL_MS):
                pass
            request.wait()
        except RuntimeError as error:
            raise translated(error, "running a graph") from error
        except BaseException:
            request.cancel()
            raise
        finally:
            self._running.discard(request)

    def cancel(self) -> None:
        """Takes effect between two operators of the graph; a loop is one operator."""
        for request in list(self._running):
            request.cancel()

    def close(self) -> None:
        self._compiled = None


class OpenVinoBinding(Binding):
    """An infer request. Its own outputs are fed back without a copy: a run writes where no input lies."""

    def __init__(self, session: OpenVinoSession) -> None:
        self._session = session
        self._request: Any = None
        self._settled: Shapes = {}
        self._fed: dict[str, Any] = {}  # the tensor that each input has now
        self._copies: dict[str, Any] = {}  # where what comes from elsewhere is copied to
        self._outputs: dict[str, list[Any]] = {}  # places for each, the one last written first

    def run(self, feeds: Feeds) -> dict[str, Tensor]:
        check_feeds(self._session.inputs, feeds, self._settled)
        if self._request is None:
            self._request = self._session.new_request()
        for name, value in feeds.items():
            self._fed[name] = self._taken(name, value)
            self._request.set_tensor(name, self._fed[name])
        for name, places in self._outputs.items():
            self._request.set_tensor(name, self._free(places))
        self._session.infer(self._request)
        self._settled = self._settled or {name: tuple(value.shape) for name, value in self._fed.items()}
        if not self._outputs:
            # The first run finds the sizes. What it wrote to belongs to the library.
            self._outputs = {
                spec.name: [_copied(self._request.get_tensor(spec.name))] for spec in self._session.outputs
            }
        return {name: OpenVinoTensor(places[0]) for name, places in self._outputs.items()}

    def _taken(self, name: str, value: Host | Tensor) -> Any:
        if isinstance(value, OpenVinoTensor):
            if any(value.value is place for places in self._outputs.values() for place in places):
                return value.value
            return _copied(value.value)
        if name not in self._copies:
            given = np.asarray(value)
            self._copies[name] = library().Tensor(library().Type(given.dtype), list(given.shape))
        self._copies[name].data[...] = value
        return self._copies[name]

    def _free(self, places: list[Any]) -> Any:
        """A place of an output that no input has, moved to the front."""
        for place in places:
            if not any(place is fed for fed in self._fed.values()):
                places.remove(place)
                break
        else:
            place = library().Tensor(places[0].element_type, places[0].shape)
        places.insert(0, place)
        return place

    def close(self) -> None:
        self._request = None
        self._settled, self._fed, self._copies, self._outputs = {}, {}, {}, {}


def _sizes(options: SessionOptions) -> Shapes:
    """Of the inputs, where they are known; those of any video otherwise."""
    return {} if options.engine is None else options.engine.shapes


def _copied(tensor: Any) -> Any:
    copy = library().Tensor(tensor.element_type, tensor.shape)
    tensor.copy_to(copy)
    return copy


def _dtype(tensor: Any) -> str:
    # NumPy has no bfloat16, and OpenVINO gives it as float16.
    element_type = tensor.element_type
    return "bfloat16" if element_type == library().Type.bf16 else str(element_type.to_dtype())


def translated(error: Exception, doing: str) -> MutoscopeError:
    """What the library raised while `doing`, as one of this project's errors."""
    text = str(error)
    # Where it was thrown comes before what was wrong.
    lines = [
        line.strip() for line in text.splitlines() if not line.startswith(("Exception from", "Check ", "FrontEnd"))
    ]
    message = " ".join(filter(None, lines))[:_LONGEST_MESSAGE] or type(error).__name__
    if isinstance(error, ImportError):
        return BackendUnavailableError(
            f"openvino is damaged ({message}); mend it with: pip install --force-reinstall 'mutoscope[openvino]'"
        )
    if "was canceled" in text:
        return CancelledError("the run was cancelled")
    if isinstance(error, MemoryError) or "bad_alloc" in text or "allocate" in text:
        return out_of_memory(f"{doing} with OpenVINO", message)
    return GraphError(f"OpenVINO failed while {doing}: {message}; verify the bundle, or export it again")


@cache
def _core() -> Any:
    return library().Core()
