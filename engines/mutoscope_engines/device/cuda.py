"""An NVIDIA GPU as a `Device`, by cuda-core, which is imported when one is opened.

Knows the library. Knows nothing of graphs.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ..errors import BackendUnavailableError, GraphError, ShapeError, out_of_memory
from ..session import Host
from .device import Device, DeviceTensor, Memory, host_dtype

INSTALL = "install cuda-core with: pip install 'cuda-core>=1.2' 'cuda-bindings>=13,<14'"

# TensorRT-RTX, onnxruntime-gpu and cuda-bindings are made for CUDA 13, and fail late and in other words without it.
LEAST_CUDA = 13000  # as `cuDriverGetVersion` counts
LEAST_DRIVER = 580  # the first for it

DEFAULT_STREAMS = (0, 1, 2)  # none, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD of cuda.h


def cuda_unavailable_because() -> str | None:
    """Why there is no GPU for this process, with the next step; loads the driver's library and nothing else."""
    if find_spec("cuda") is None or find_spec("cuda.core") is None or find_spec("cuda.bindings") is None:
        return f"cuda-core is not installed; {INSTALL}"
    import ctypes

    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver; install one"
    version, count = ctypes.c_int(), ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.pointer(version)) == 0 and version.value < LEAST_CUDA:
        return (
            f"the NVIDIA driver is for CUDA {version.value // 1000}.{version.value % 1000 // 10}; update it to "
            f"{LEAST_DRIVER} or newer, which is for CUDA {LEAST_CUDA // 1000}"
        )
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.pointer(count)) != 0 or not count.value:
        return "the NVIDIA driver finds no GPU; see what `nvidia-smi` says"
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


class Owned:
    """A buffer of cuda-core. Whichever thread drops this, or the collector, the device decides when it is freed."""

    def __init__(self, buffer: Any, give_back: Callable[[Any], None]) -> None:
        self.address = int(buffer.handle)
        self._buffer, self._give_back = buffer, give_back

    def __del__(self) -> None:
        self._give_back(self._buffer)


class CudaDevice(Device):
    """The GPU of the process: the current one of the thread that opens it, the first when it has none.

    Args:
        stream: the handle of a caller's CUDA stream, which must outlive this; a stream of its own when omitted.

    Attributes:
        queue: cuda-core's object of the stream.
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
            self.queue = self._device.create_stream() if stream is None else core.Stream.from_handle(stream)
            self._downloads = self._device.create_stream()
            # A pool of its own: the one that all share would be told to keep for ever what is freed.
            self._pool = core.DeviceMemoryResource(self._device.device_id, core.DeviceMemoryResourceOptions())
        self.stream = int(self.queue.handle)
        self.index = int(self._device.device_id)
        self._turns = 0
        self._dropped: deque[Any] = deque()

    def make_current(self) -> None:
        with _translated("opening the GPU"):
            self._device.set_current()

    @contextmanager
    def turn(self) -> Iterator[None]:
        try:
            with super().turn():
                self._turns += 1
                try:
                    yield
                finally:
                    self._turns -= 1
        finally:
            self._free_dropped()

    def allocate(self, size: int) -> Memory:
        with self.turn(), _translated(f"allocating {size} bytes"):
            self._dropped.clear()
            return Owned(self._pool.allocate(max(size, 1), stream=self.queue), self._give_back)

    def _give_back(self, buffer: Any) -> None:
        """Frees a buffer, which is work of the stream: now, or after the turn that goes on, which may be a capture."""
        self._dropped.append(buffer)
        self._free_dropped()

    def _free_dropped(self) -> None:
        """Again until none is left: another thread can drop one just before the lock is released, and not get it."""
        while self._dropped and self.lock.acquire(blocking=False):
            try:
                if self._turns:
                    return
                self._dropped.clear()
            finally:
                self.lock.release()

    def upload(self, address: int, values: Host) -> None:
        # From pageable memory the driver takes the values before it returns.
        self._copy(address, values.ctypes.data, values.nbytes, self.queue)

    def download(self, address: int, values: Host) -> None:
        # To pageable memory the driver returns once all is done: so on a stream on which nothing else waits, which no
        # thread captures, and which therefore needs no turn.
        self.synchronize()
        self._copy(values.ctypes.data, address, values.nbytes, self._downloads)
        with _translated("copying"):
            self._downloads.sync()

    def synchronize(self) -> None:
        # Waits for an event, outside of the turn: another thread may capture the stream by then. Without
        # `blocking_sync` the wait would keep a core busy for the whole step.
        with _translated("running a graph"):
            with self.turn():
                self._dropped.clear()
                done = self.queue.record(options=self._core.EventOptions(blocking_sync=True))
            done.sync()

    def leave(self) -> None:
        super().leave()
        self.synchronize()  # at which the pool gives what was freed back to the driver, for others to allocate

    def copy(self, target: int, source: int, size: int) -> None:
        self._copy(target, source, size, self.queue)

    def _copy(self, target: int, source: int, size: int, stream: Any) -> None:
        if not size:
            return
        self.make_current()
        buffer = self._core.Buffer.from_handle
        with _translated("copying"):
            buffer(target, size).copy_from(buffer(source, size), stream=stream)

    def capture(self, queue_work: Callable[[], None]) -> Callable[[], None]:
        with self.turn():
            with _translated("capturing a CUDA graph"):
                builder = self.queue.create_graph_builder()
            try:
                with _translated("capturing a CUDA graph"):
                    # "relaxed": other threads of the process may allocate meanwhile
                    builder.begin_building("relaxed")
                queue_work()
                with _translated("capturing a CUDA graph"):
                    graph = builder.end_building().complete()
            finally:
                # Ends a capture that failed, and must not hide why; else the stream would go on capturing. A builder
                # that could not be closed ends what the stream captures by the time that it goes, which is now.
                with suppress(Exception):
                    builder.close()
                del builder

        def replay() -> None:
            with _translated("replaying a CUDA graph"):
                graph.launch(self.queue)

        return replay

    def free_bytes(self) -> int:
        from cuda.bindings import driver

        self.synchronize()
        error, free, _ = driver.cuMemGetInfo()
        if error != driver.CUresult.CUDA_SUCCESS:
            raise BackendUnavailableError(f"the NVIDIA driver does not say how much memory is free: {error.name}")
        pool = self._pool.attributes
        return int(free) + int(pool.reserved_mem_current) - int(pool.used_mem_current)

    def adopt(self, array: Any) -> DeviceTensor:
        from cuda.core.utils import StridedMemoryView

        with self.turn(), _translated("reading an array of another library"):
            try:
                view = StridedMemoryView.from_any_interface(array, stream_ptr=self.stream)
            except BufferError as error:
                raise ShapeError(f"a {type(array).__name__} cannot be read as an array on the GPU: {error}") from error
        if not view.is_device_accessible or view.device_id != self.index:
            raise ShapeError(f"the array is on device {view.device_id}, and this session is on GPU {self.index}")
        shape = tuple(view.shape)
        if view.strides is not None and not _is_contiguous(shape, tuple(view.strides)):
            raise ShapeError(f"the array of shape {shape} has strides {tuple(view.strides)}; make it contiguous first")
        return DeviceTensor(self, Borrowed(view.ptr, view), view.ptr, shape, str(view.dtype))

    def share(self, tensor: DeviceTensor, stream: int | None) -> Any:
        from cuda.core.utils import StridedMemoryView

        if stream != -1:  # DLPack: -1 asks for no order, none means the legacy default stream, which is 1
            with self.turn(), _translated("sharing a tensor"):
                self._core.Stream.from_handle(1 if stream is None else stream).wait(self.queue)
        buffer = self._core.Buffer.from_handle(tensor.address, tensor.size, owner=tensor.memory)
        view = StridedMemoryView.from_buffer(buffer, tensor.shape, dtype=host_dtype(tensor.dtype))
        return view.__dlpack__(stream=-1)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether these strides, in elements, are those of C order. That of an axis of one entry may be any."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """What the driver refuses, in this project's words."""
    try:
        yield
    except Exception as error:
        # cuda-core has no public name for the driver's errors, and raises RuntimeError for some that it finds itself.
        if not isinstance(error, RuntimeError) and "CUDAError" not in [kind.__name__ for kind in type(error).__mro__]:
            raise
        if "OUT_OF_MEMORY" in str(error):
            raise out_of_memory(doing, error, on_device=True) from error
        raise GraphError(
            f"the GPU failed while {doing}: {error}; start the program again, and if it fails again, check the GPU and "
            "its driver"
        ) from error
