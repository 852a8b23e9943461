"""Engines of TensorRT-RTX, or of TensorRT, run on a GPU over memory at addresses that stay.

Knows the runtime half of the library; `tensorrt_library` names the two, and what differs in it. Which engine runs is
found by `tensorrt_backend`; nothing is built here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..device.device import Device, DeviceTensor
from ..device.session import DevicePlaces, DeviceSession, Slot
from ..errors import (
    BackendUnavailableError,
    EngineError,
    GraphError,
    MutoscopeError,
    OutOfMemoryError,
    ShapeError,
    out_of_memory,
)
from ..session import Shapes, TensorSpec
from .kernel_cache import KernelCache

DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "UINT8": "uint8", "BOOL": "bool"}


@dataclass(frozen=True)
class TensorRtSettings:
    """What TensorRT-RTX decides at run time, decided here. The classic library has none of it."""

    cuda_graph_strategy: str = "DISABLED"  # its own capture; the session captures, and then the library must not
    dynamic_shapes_kernel_specialization_strategy: str = "EAGER"  # before the first step, so what is captured is final
    kernel_cache: bool = True  # of what it compiled for this GPU, which takes half a minute


@dataclass(frozen=True)
class EngineUse:
    """How one engine is used.

    Attributes:
        captures: whether a run is captured as a CUDA graph when it is repeated.
        streamed_weight_bytes: as many of the weights stay in host memory.
        activation_bytes: what the build recorded; 0 where it is not known, or there are none.
    """

    captures: bool = True
    streamed_weight_bytes: int = 0
    activation_bytes: int = 0


class TensorRtSession(DeviceSession):
    """An engine on the device.

    Args:
        trt: the library's module.
        engine: the file, checked.
        kernels: where what the library compiles for this GPU is kept, if anywhere.

    Raises:
        EngineError: the library does not load it.
        OutOfMemoryError: it does not fit.
    """

    def __init__(
        self,
        trt: Any,
        engine: Any,
        device: Device,
        settings: TensorRtSettings,
        kernels: KernelCache | None = None,
        use: EngineUse = EngineUse(),
    ) -> None:
        self.trt, self.use = trt, use
        with device.turn():
            self._runtime = trt.Runtime(_log(trt.ILogger))
            self.engine = self._runtime.deserialize_cuda_engine(engine)
            if self.engine is None:
                raise _refusal(trt, "does not load", "build it again", EngineError)
            if use.streamed_weight_bytes:
                kept = self.engine.streamable_weights_size - use.streamed_weight_bytes
                self.engine.weight_streaming_budget_v2 = max(0, kept)
            self._kernels = kernels
            self._config, self._compiled = self._configured(settings)
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        inputs = [name for name in names if self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        super().__init__(device, self._specs(inputs), self._specs(name for name in names if name not in inputs))

    def _configured(self, settings: TensorRtSettings) -> tuple[Any, Any]:
        """How contexts are made, and the library's cache of compiled kernels, if it has one."""
        trt = self.trt
        config = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if not hasattr(trt, "CudaGraphStrategy"):  # the classic library
            return config, None
        config.cuda_graph_strategy = getattr(trt.CudaGraphStrategy, settings.cuda_graph_strategy)
        config.dynamic_shapes_kernel_specialization_strategy = getattr(
            trt.DynamicShapesKernelSpecializationStrategy, settings.dynamic_shapes_kernel_specialization_strategy
        )
        if self._kernels is None:
            return config, None
        compiled = config.create_runtime_cache()
        if kept := self._kernels.load():
            compiled.deserialize(kept)  # one for another driver or GPU is passed over, and replaced in the end
        if not config.set_runtime_cache(compiled):
            return config, None  # it runs as well, and compiles anew in the next process
        return config, compiled

    def _specs(self, names: Iterable[str]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name,
                DTYPES[self.engine.get_tensor_dtype(name).name],
                tuple(
                    f"{name}.{axis}" if size < 0 else int(size)
                    for axis, size in enumerate(self.engine.get_tensor_shape(name))
                ),
            )
            for name in names
        )

    def open_slot(self, shapes: Shapes, places: DevicePlaces) -> Slot:
        for name, shape in shapes.items():
            smallest, _, largest = (tuple(size) for size in self.engine.get_tensor_profile_shape(name, 0))
            if not all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
                raise ShapeError(
                    f"input {name!r} has shape {shape}; the engine was built for {smallest} to {largest}, so "
                    "build one for these sizes"
                )
        return TensorRtSlot(self, self.engine.create_execution_context(self._config), shapes, places)

    def close(self) -> None:
        try:
            if not self._closed and self._compiled is not None and self._kernels is not None:
                with self.device.turn():  # the library asks the current device
                    compiled = bytes(self._compiled.serialize())
                self._kernels.store(compiled)
        finally:
            try:
                super().close()
            finally:
                self.engine = self._config = self._compiled = self._runtime = None


class TensorRtSlot(Slot):
    """A context with its addresses, bound once. Runs as it is first, then captured and replayed."""

    def __init__(self, session: TensorRtSession, context: Any, shapes: Shapes, places: DevicePlaces) -> None:
        if context is None:
            raise _refusal(session.trt, "could not reserve memory to run", kind=OutOfMemoryError)
        super().__init__(session.device, session.inputs, shapes, places.inputs)
        self._device, self._context, self._trt = session.device, context, session.trt
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise _refusal(session.trt, f"does not take {name!r} in shape {shape}", kind=ShapeError)
        self._settle_shapes(shapes)
        self._outputs = {
            spec.name: places.output(self._device, tuple(context.get_tensor_shape(spec.name)), spec.dtype)
            for spec in session.outputs
        }
        for name, tensor in (self.inputs | self._outputs).items():
            if not context.set_tensor_address(name, tensor.address):
                raise _refusal(session.trt, f"does not take the address of {name!r}")
        self._scratch_bytes = int(context.update_device_memory_size_for_shapes())
        if session.use.activation_bytes and not self._scratch_bytes:  # 0 also means that it failed
            raise _refusal(session.trt, f"does not say what memory it needs for {dict(shapes)}")
        self._scratch_version = -1
        self._captures = session.use.captures
        self._ran = False
        self._replay: Callable[[], None] | None = None

    def _settle_shapes(self, shapes: Shapes) -> None:
        try:
            unsettled = self._context.infer_shapes()
        except RuntimeError as error:
            raise ShapeError(f"the engine does not take {dict(shapes)} together: {error}") from error
        if unsettled:
            raise ShapeError(
                f"the engine does not take {dict(shapes)} together: {', '.join(unsettled)} have no definite shape"
            )

    def launch(self) -> dict[str, DeviceTensor]:
        scratch, version = self._device.scratch(self._scratch_bytes)
        if version != self._scratch_version:  # a captured graph knows the block that there was
            self._context.set_device_memory(scratch.address, self._scratch_bytes)
            # After a change the library wants one run as it is before it is captured.
            self._scratch_version, self._replay, self._ran = version, None, False
        if self._captures and self._ran:
            if self._replay is None:
                self._replay = self._captured()
            self._replay()
        else:
            self._enqueue()
            self._ran = True  # whatever is done once has been done, and a graph can be captured
        return self._outputs

    def _captured(self) -> Callable[[], None]:
        capturable = getattr(self._context, "is_stream_capturable", None)  # the classic library does not say
        if capturable is not None and not capturable(self._device.stream):
            raise BackendUnavailableError("this engine cannot be captured as a CUDA graph; turn cuda_graphs off")
        return self._device.capture(self._enqueue)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._device.stream):
            raise _refusal(self._trt, "did not run", "build it again")


def _refusal(
    trt: Any,
    what: str,
    advice: str = "check the GPU, its driver and the library",
    kind: type[MutoscopeError] = GraphError,
) -> MutoscopeError:
    """An error with what the library says; a lack of memory has its own kind and next step wherever it shows."""
    said = _log(trt.ILogger).take()
    if "outofmemory" in said.lower().replace(" ", ""):
        kind = OutOfMemoryError
    if "CUDA driver" in said:  # too old for the library's CUDA
        advice = "update the NVIDIA driver"
    if kind is OutOfMemoryError:
        return out_of_memory(f"using an engine: it {what}", said, on_device=True)
    return kind(f"the engine {what}: {said}; {advice}")


@cache
def _log(base: Any) -> Any:
    """A logger that keeps the last error and prints nothing. The library keeps the first that it is given for all that
    follows in the process, so there is one.

    Args:
        base: the library's `ILogger`.
    """

    class Log(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (base.ERROR, base.INTERNAL_ERROR):
                self._errors[:] = [message.strip()]

        def take(self) -> str:
            """The last error since it was asked for."""
            return self._errors.pop() if self._errors else "the library does not say why"

    return Log()
