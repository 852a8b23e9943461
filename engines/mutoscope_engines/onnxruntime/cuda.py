"""ONNX Runtime on an NVIDIA GPU: for graphs without engines, and for GPUs that TensorRT-RTX does not know.

Inputs and outputs lie on the device (IO binding), and its own CUDA graph replays a run after the first.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

from ..device.cuda import CudaDevice, cuda_unavailable_because
from ..device.device import Device, DeviceTensor
from ..device.session import DevicePlaces, DeviceSession, Slot
from ..onnx_file import ONNX_TYPES
from ..session import Backend, Session, SessionOptions, Shapes
from ..system.own_thread import OwnThread
from .library import open_session, ort, specs, translated

PROVIDER = "CUDAExecutionProvider"
NO_GRAPH = -1  # ONNX Runtime's "do not capture this run"


class OnnxRuntimeCuda(Backend):
    """The library's CUDA provider, which runs graphs as they are.

    Args:
        device: the GPU; when omitted, the one of this process, opened when it is needed.
    """

    name = "onnxruntime-cuda"
    on_device = True

    def __init__(self, device: Device | None = None) -> None:
        self._opened = device

    def device(self, options: SessionOptions) -> Device:
        """The GPU, opened once."""
        if self._opened is None:
            self._opened = CudaDevice(options.stream)
        return self._opened

    @property
    def preferred_precision(self) -> str:
        return "bf16"

    def unavailable_because(self) -> str | None:
        if PROVIDER not in ort.get_available_providers():
            return (
                "the installed onnxruntime is the build for CPUs; in the folder of Mutoscope's source, run: "
                "pip uninstall -y onnxruntime && pip install '.[cuda]' ./distributions/onnxruntime_gpu"
            )
        return cuda_unavailable_because()

    def version(self) -> str:
        return f"onnxruntime-gpu {ort.__version__}"

    def supports(self, precision: str) -> bool:
        return precision in ("bf16", "fp16", "fp32")

    def memory_bytes(self, options: SessionOptions) -> int:
        return self.device(options).free_bytes()

    def settings(self, options: SessionOptions) -> dict[str, str]:
        return {"cuda_graph": "captured by ONNX Runtime in the second run" if options.cuda_graphs else "off"}

    def open(self, graph: Path, options: SessionOptions) -> Session:
        return OnnxRuntimeCudaSession(graph, self.device(options), options)


class OnnxRuntimeCudaSession(DeviceSession):
    """A graph that the library loaded onto the device.

    Raises:
        BackendUnavailableError: the provider's libraries do not load.
        GraphError: the library refuses the graph.
        OutOfMemoryError: it does not fit.
    """

    def __init__(self, graph: Path, device: Device, options: SessionOptions) -> None:
        preload_libraries()
        settings = ort.SessionOptions()
        self.library: Any = open_session(graph, settings, providers(device, options), "GPU")
        super().__init__(device, specs(self.library.get_inputs()), specs(self.library.get_outputs()))
        self._slots = count(1)
        # ONNX Runtime keeps a captured graph with the thread that ran it, so one thread runs them all.
        self.thread = OwnThread("mutoscope-onnxruntime")
        self._replays = options.cuda_graphs and self.thread.started

    def open_slot(self, shapes: Shapes, places: DevicePlaces) -> Slot:
        return OnnxRuntimeSlot(self, shapes, places, next(self._slots) if self._replays else NO_GRAPH)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.thread.end()
            self.library = None


class OnnxRuntimeSlot(Slot):
    """An IO binding. ONNX Runtime gives the outputs their memory in the first run, and keeps to it in later ones."""

    def __init__(self, session: OnnxRuntimeCudaSession, shapes: Shapes, places: DevicePlaces, graph_id: int) -> None:
        super().__init__(session.device, session.inputs, shapes, places.inputs)
        self._device, self._session, self._graph_id = session.device, session.library, graph_id
        self._thread = session.thread
        self._place = (session.device.kind, session.device.index)
        self._outputs: dict[str, DeviceTensor] = {}
        self._names = [(spec.name, spec.dtype) for spec in session.outputs]
        self._binding = self._session.io_binding()
        for name, tensor in self.inputs.items():
            self._binding.bind_input(name, *self._place, ONNX_TYPES[tensor.dtype], list(tensor.shape), tensor.address)
        for name, _ in self._names:
            self._binding.bind_output(name, *self._place)

    def launch(self) -> dict[str, DeviceTensor]:
        if self._outputs:
            self._run(self._graph_id)
        else:
            self._run(NO_GRAPH)
            for (name, dtype), value in zip(self._names, self._binding.get_outputs(), strict=True):
                shape = tuple(value.shape())
                self._outputs[name] = DeviceTensor(self._device, OrtMemory(value), value.data_ptr(), shape, dtype)
                self._binding.bind_ortvalue_output(name, value)
        return self._outputs

    def _run(self, graph_id: int) -> None:
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph_id))
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")  # the stream keeps the order
        try:
            self._thread.run(partial(self._session.run_with_iobinding, self._binding, options))
        except Exception as error:
            raise translated(error, "running a graph", "GPU") from error


class OrtMemory:
    """Memory that ONNX Runtime gave an output."""

    def __init__(self, value: Any) -> None:
        self.value = value

    @property
    def address(self) -> int:
        """Of the first byte, on the device."""
        return int(self.value.data_ptr())


@cache
def preload_libraries() -> None:
    """Loads CUDA and cuDNN from pip's packages, where the library would not look for them by itself."""
    with redirect_stdout(sys.stderr):  # it prints what it does not find
        ort.preload_dlls()


def providers(device: Device, options: SessionOptions) -> list[Any]:
    """The provider of a device, with its settings. Work goes to the device's stream."""
    settings = {
        "device_id": str(device.index),
        "user_compute_stream": str(device.stream),
        "enable_cuda_graph": "1" if options.cuda_graphs else "0",
        # Grows by what is asked for: the default doubles, and holds memory that the next stage needs.
        "arena_extend_strategy": "kSameAsRequested",
    }
    return [(PROVIDER, settings)]
