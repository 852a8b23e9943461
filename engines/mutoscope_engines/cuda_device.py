"""An NVIDIA GPU as a `Device`, by cuda-core, which is imported when one is opened.

Knows the library. Knows nothing of graphs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from .device import Device, DeviceTensor, Memory
from .errors import BackendUnavailableError, GraphError, OutOfMemoryError, ShapeError
from .session import Host

INSTALL = "install cuda-core with: pip install 'cuda-core>=1.2' 'cuda-bindings>=13,<14'"

DEFAULT_STREAMS = (0, 1, 2)  # none, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD of cuda.h


def cuda_unavailable_because() -> str | None:
    """Why there is no GPU for this process, with the next step; loads the driver's library and nothing else."""
    if find_spec("cuda") is None or find_spec("cuda.core") is None or find_spec("cuda.bindings") is None:
        return f"cuda-core is not installed; {INSTALL}"
    import ctypes

    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver; install one, or use --backend onnxruntime"
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or not count.value:
        return "the NVIDIA driver finds no GPU; see what `nvidia-smi` says, or use --backend onnxruntime"
    return None


def compute_capability() -> int:
    """Of the GPU that a `CudaDevice` opens: 89 for 8.9."""
    from cuda import core

    with _translated("opening the GPU"):
        major, minor = core.Device().compute_capability
    return int(major) * 10 + int(minor)


@dataclass(frozen=True)
class Borrowed:
    """Memory of another library, kept by its owner."""

    address: int
    owner: Any


@dataclass(frozen=True)
class Owned:
    """A buffer of cuda-core, which frees it on the stream when it is dropped."""

    address: int
    buffer: Any


class CudaDevice(Device):
    """The GPU of the process: the current one of the thread that opens it, the first when it has none.

    Args:
        stream: the handle of a caller's CUDA stream, which must outlive this; a stream of its own when omitted.
    """

    kind = "cuda"
    dlpack_kind = 2  # kDLCUDA of dlpack.h

    def __init__(self, stream: int | None = None) -> None:
        super().__init__()
        if stream in DEFAULT_STREAMS:
            raise BackendUnavailableError(
                f"cuda_stream {stream} is a default stream, on which no CUDA graph can be captured; "
                "give one of your own, such as torch.cuda.Stream().cuda_stream, or none"
            )
        from cuda import core

        self._core = core
        with _translated("opening the GPU"):
            self._device = core.Device()
            self._device.set_current()
            self._stream = self._device.create_stream() if stream is None else core.Stream.from_handle(stream)
            self._pool = core.DeviceMemoryResource(self._device.device_id)
        self.stream = int(self._stream.handle)
        self.index = int(self._device.device_id)

    def make_current(self) -> None:
        self._device.set_current()

    def allocate(self, size: int) -> Memory:
        self.make_current()
        with _translated(f"allocating {size} bytes"):
            buffer = self._pool.allocate(max(size, 1), stream=self._stream)
        return Owned(int(buffer.handle), buffer)

    def upload(self, address: int, values: Host) -> None:
        # From pageable memory the driver takes the values before it returns.
        self._copy(address, values.ctypes.data, values.nbytes)

    def download(self, address: int, values: Host) -> None:
        with self.turn():
            self._copy(values.ctypes.data, address, values.nbytes)
        self.synchronize()

    def synchronize(self) -> None:
        # Waits for an event, outside of the turn: another thread may capture the stream by then.
        with _translated("running a graph"):
            with self.turn():
                done = self._stream.record()
            done.sync()

    def copy(self, target: int, source: int, size: int) -> None:
        self._copy(target, source, size)

    def _copy(self, target: int, source: int, size: int) -> None:
        if not size:
            return
        self.make_current()
        buffer = self._core.Buffer.from_handle
        with _translated("copying"):
            buffer(target, size).copy_from(buffer(source, size), stream=self._stream)

    def capture(self, queue_work: Callable[[], None]) -> Callable[[], None]:
        self.make_current()
        with _translated("capturing a CUDA graph"):
            builder = self._stream.create_graph_builder()
            # "relaxed": other threads of the process may allocate meanwhile
            builder.begin_building("relaxed")
            try:
                queue_work()
            finally:
                builder.end_building()
            graph = builder.complete()
            builder.close()

        def replay() -> None:
            with _translated("replaying a CUDA graph"):
                graph.launch(self._stream)

        return replay

    def free_bytes(self) -> int:
        from cuda.bindings import driver

        self.make_current()
        error, free, _ = driver.cuMemGetInfo()
        if error != driver.CUresult.CUDA_SUCCESS:
            raise BackendUnavailableError(f"the NVIDIA driver does not say how much memory is free: {error.name}")
        return int(free)

    def adopt(self, array: Any) -> DeviceTensor:
        from cuda.core.utils import StridedMemoryView

        with self.turn():
            view = StridedMemoryView.from_any_interface(array, stream_ptr=self.stream)
        if not view.is_device_accessible or view.device_id != self.index:
            raise ShapeError(f"the array lies on device {view.device_id}, this session runs on GPU {self.index}")
        shape = tuple(view.shape)
        if view.strides is not None and tuple(view.strides) != _contiguous_strides(shape):
            raise ShapeError(f"the array of shape {shape} has strides {tuple(view.strides)}; make it contiguous first")
        return DeviceTensor(self, Borrowed(view.ptr, view), view.ptr, shape, str(view.dtype))

    def share(self, tensor: DeviceTensor, stream: int | None) -> Any:
        from cuda.core.utils import StridedMemoryView

        if stream != -1:  # DLPack: -1 asks for no order, none means the legacy default stream, which is 1
            with self.turn():
                self._core.Stream.from_handle(1 if stream is None else stream).wait(self._stream)
        buffer = self._core.Buffer.from_handle(tensor.address, tensor.size, owner=tensor.memory)
        view = StridedMemoryView.from_buffer(buffer, tensor.shape, dtype=np.dtype(tensor.dtype))
        return view.__dlpack__(stream=-1)


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """In elements."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """What the driver refuses, in this project's words."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "CUDAError":  # cuda-core has no public name for it
            raise
        if "OUT_OF_MEMORY" in str(error):
            raise OutOfMemoryError(
                f"out of GPU memory while {doing}: {error}; set --memory-limit lower, ask for a smaller height, width "
                "or num_frames, or close other programs"
            ) from error
        raise GraphError(f"the GPU failed while {doing}: {error}; see `mutoscope doctor`") from error
