"""TensorRT-RTX as far as the session calls it: an "engine" names an ONNX graph, which ONNX Runtime runs in its place.

It insists on the order that the library's documentation asks for, and records every call. The first logger that it is
given serves for the whole process.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime
from mutoscope_engines.onnxruntime.cpu import WITHOUT

from tests.engines.host_device import HostDevice

PREFIX = b"engine of "
TYPES = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(uint8)": ("UINT8", np.uint8),
    "tensor(bool)": ("BOOL", np.bool_),
}
SCRATCH_BYTES_PER_ELEMENT = 8
LARGEST = 2048


def engine_of(graph: Path) -> bytes:
    return PREFIX + str(graph).encode()


class FakeTensorRt:
    """Stands for the module."""

    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    CudaGraphStrategy = SimpleNamespace(DISABLED="no graphs", WHOLE_GRAPH_CAPTURE="whole")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager", LAZY="lazy", NONE="none")

    class ILogger:
        ERROR, INTERNAL_ERROR = "error", "internal error"

    loggers: ClassVar[list[Any]] = []

    @property
    def log(self) -> Any:
        return self.loggers[0]

    def __init__(self, device: HostDevice) -> None:
        self.device = device
        self.calls: list[tuple[Any, ...]] = []
        self.engines: list[FakeEngine] = []
        self.kernels_of_before: bytes | None = None
        self.capturable = True
        self.refused: dict[str, str] = {}  # the calls that fail, with what the log says of it, if anything

    def refuses(self, name: str) -> bool:
        if self.refused.get(name):
            self.log.log(self.ILogger.ERROR, self.refused[name])
        return name in self.refused

    def Runtime(self, log: Any) -> FakeRuntime:  # noqa: N802
        self.loggers.append(log)
        return FakeRuntime(self)

    def count(self, name: str) -> int:
        return sum(call[0] == name for call in self.calls)


class FakeRuntime:
    def __init__(self, trt: FakeTensorRt) -> None:
        self._trt = trt

    def deserialize_cuda_engine(self, data: Any) -> FakeEngine | None:
        content = bytes(data)
        if self._trt.refuses("deserialize_cuda_engine"):
            return None
        if not content.startswith(PREFIX):
            self._trt.log.log(FakeTensorRt.ILogger.ERROR, "magic tag does not match")
            return None
        self._trt.engines.append(FakeEngine(self._trt, Path(content.removeprefix(PREFIX).decode())))
        return self._trt.engines[-1]


class FakeEngine:
    streamable_weights_size = 1000

    def __init__(self, trt: FakeTensorRt, graph: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        # As the CPU's sessions have it, so that values agree to the last bit.
        session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=WITHOUT
        )
        self.run = session.run
        self.trt, self.weight_streaming_budget_v2 = trt, None
        self.inputs = {node.name: node for node in session.get_inputs()}
        self.outputs = {node.name: node for node in session.get_outputs()}
        self.nodes = self.inputs | self.outputs
        self.num_io_tensors = len(self.nodes)

    def get_tensor_name(self, index: int) -> str:
        return list(self.nodes)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=TYPES[self.nodes[name].type][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.nodes[name].shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        shape = self.get_tensor_shape(name)
        return [[free if size < 0 else size for size in shape] for free in (1, LARGEST // 2, LARGEST)]

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig(self.trt)

    def create_execution_context(self, config: FakeConfig) -> FakeContext | None:
        assert config.allocation == "user managed"
        if self.trt.refuses("create_execution_context"):
            return None
        self.trt.calls.append(("create_execution_context",))
        return FakeContext(self)


class FakeConfig:
    def __init__(self, trt: FakeTensorRt) -> None:
        self.allocation, self._trt = "", trt
        self.cuda_graph_strategy = self.dynamic_shapes_kernel_specialization_strategy = "library default"

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> Any:
        trt = self._trt

        def deserialize(kept: bytes) -> bool:
            trt.kernels_of_before = bytes(kept)
            return True

        def serialize() -> bytes:
            assert trt.device.current_in == threading.get_ident()  # what it asks of the GPU, it asks the current one
            return b"compiled kernels"

        return SimpleNamespace(deserialize=deserialize, serialize=serialize)

    def set_runtime_cache(self, cache: Any) -> bool:
        self._trt.calls.append(("set_runtime_cache", self.cuda_graph_strategy))
        return not self._trt.refuses("set_runtime_cache")


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine, self._trt = engine, engine.trt
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._inferred = False
        self._memory = (0, -1)
        self._changed = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return not self._trt.refuses("set_input_shape")

    def infer_shapes(self) -> list[str]:
        missing = [name for name in self._engine.inputs if name not in self._shapes]
        if not missing:
            zeros = {
                name: np.zeros(self._shapes[name], TYPES[node.type][1]) for name, node in self._engine.inputs.items()
            }
            try:
                results = self._engine.run(None, zeros)
            except Exception as error:
                raise RuntimeError("shapes contradict each other") from error
            self._shapes |= {name: value.shape for name, value in zip(self._engine.outputs, results, strict=True)}
            self._inferred = True
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self._inferred
        return self._shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self._engine.nodes and address % 256 == 0
        self._trt.calls.append(("set_tensor_address", name, address))
        self._addresses[name] = address
        return not self._trt.refuses("set_tensor_address")

    def update_device_memory_size_for_shapes(self) -> int:
        assert self._inferred
        if self._trt.refuses("update_device_memory_size_for_shapes"):
            return 0
        return SCRATCH_BYTES_PER_ELEMENT * sum(int(np.prod(shape)) for shape in self._shapes.values())

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0
        self._trt.calls.append(("set_device_memory", address, size))
        self._memory, self._changed = (address, size), True

    def is_stream_capturable(self, stream: int) -> bool:
        return self._trt.capturable

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self._trt.device.stream and set(self._addresses) == set(self._engine.nodes)
        address, size = self._memory
        assert size >= self.update_device_memory_size_for_shapes()
        if self._trt.refuses("execute_async_v3"):
            return False
        assert not (self._changed and self._trt.device.captures_now), "run it as it is after a change, then capture"
        self._changed = False
        self._trt.calls.append(("execute_async_v3",))
        self._trt.device.queue(lambda: self._run(address, size))
        return True

    def _run(self, address: int, size: int) -> None:
        ctypes.memset(address, 0xAB, size)  # whatever shares memory with it is spoilt
        feeds = {name: self._at(name).copy() for name in self._engine.inputs}
        for name, value in zip(self._engine.outputs, self._engine.run(None, feeds), strict=True):
            self._at(name)[...] = value

    def _at(self, name: str) -> Any:
        dtype = np.dtype(TYPES[self._engine.nodes[name].type][1])
        count = int(np.prod(self._shapes[name]))
        raw = (ctypes.c_uint8 * max(1, count * dtype.itemsize)).from_address(self._addresses[name])
        return np.frombuffer(raw, np.uint8)[: count * dtype.itemsize].view(dtype).reshape(self._shapes[name])
