"""Memory on a device, and the queue of work on it: all that sessions ask of one.

Knows addresses, bytes and the order of work. Knows nothing of graphs; only `cuda_device` knows a library.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import GraphError
from ..session import Host, Tensor

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "uint8": 1, "bool": 1}


def byte_size(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a C-contiguous array."""
    return math.prod(shape) * ITEM_BYTES[dtype]


def host_dtype(dtype: str) -> np.dtype[Any]:
    """NumPy's type of this name.

    Raises:
        GraphError: NumPy has none, and the package that adds it is missing.
    """
    if dtype == "bfloat16":
        try:
            import ml_dtypes  # noqa: F401  adds the name to NumPy's
        except ImportError as error:
            raise GraphError(
                "the tensor is bfloat16, which NumPy has no type for; add it with: pip install ml_dtypes"
            ) from error
    return np.dtype(dtype)


class Memory(Protocol):
    """Bytes on the device, the owner's until any thread drops the object; freed after the work queued by then."""

    @property
    def address(self) -> int:
        """Of the first byte, on the device."""
        ...


class Device(ABC):
    """One queue of work and the memory that it works on.

    Work is done in the order in which it was queued, so what is queued later may use what earlier work leaves. Any
    thread may queue it, in its `turn`: what one thread queues while another captures would become a part of that graph.
    """

    kind: str  # as ONNX Runtime calls it: "cuda"
    dlpack_kind: int  # as DLPack calls it
    index: int  # which of its kind
    stream: int  # the handle of the queue
    lock: threading.RLock  # whoever holds it has the turn

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._scratch: Memory | None = None
        self._scratch_bytes = self._scratch_version = self._sessions = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keeps other threads from queueing, for what belongs together; this device is the thread's current one."""
        with self.lock:
            self.make_current()
            yield

    @abstractmethod
    def make_current(self) -> None:
        """Makes libraries that this thread calls use this device."""

    @abstractmethod
    def allocate(self, size: int) -> Memory:
        """`size` bytes of any content, aligned to 256.

        Raises:
            OutOfMemoryError: there are not as many left.
        """

    @abstractmethod
    def upload(self, address: int, values: Host) -> None:
        """Queues a copy of a C-contiguous host array. The caller may change it as soon as this returns."""

    @abstractmethod
    def download(self, address: int, values: Host) -> None:
        """Fills a C-contiguous host array, after all that was queued."""

    @abstractmethod
    def copy(self, target: int, source: int, size: int) -> None:
        """Queues a copy between two places of the device that do not overlap."""

    @abstractmethod
    def synchronize(self) -> None:
        """Waits for all that was queued."""

    @abstractmethod
    def capture(self, queue_work: Callable[[], None]) -> Callable[[], None]:
        """What queues, all at once, the work that `queue_work` queues; this itself queues none of it."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Memory that can be allocated now."""

    @abstractmethod
    def share(self, tensor: DeviceTensor, stream: int | None) -> Any:
        """A DLPack capsule over a tensor, ready on the stream of this handle, as `__dlpack__` numbers streams."""

    @abstractmethod
    def adopt(self, array: Any) -> DeviceTensor:
        """A tensor over an array of another library, by DLPack or `__cuda_array_interface__`, without a copy; what was
        queued on its stream comes first.

        Raises:
            ShapeError: it does not lie on this device, or not in C order.
        """

    def scratch(self, size: int) -> tuple[Memory, int]:
        """Memory for intermediate results, and its version: one block for all graphs, as they run one after the other.

        It is there until a larger one takes its place, which has another version, so ask before every run.
        """
        if self._scratch is None or self._scratch_bytes < size:
            self._scratch = None  # before the larger one is allocated
            self._scratch = self.allocate(size)
            self._scratch_bytes = size
            self._scratch_version += 1
        return self._scratch, self._scratch_version

    def enter(self) -> None:
        """A session begins to use this device."""
        with self.lock:
            self._sessions += 1

    def leave(self) -> None:
        """A session has ended; the last one takes the scratch memory with it. Can wait, so call it outside of turns."""
        with self.lock:
            self._sessions -= 1
            if not self._sessions:
                self._scratch, self._scratch_bytes = None, 0


@dataclass(frozen=True)
class DeviceTensor:
    """An array in device memory, C-contiguous. Keeps its memory."""

    device: Device
    memory: Memory
    address: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """In bytes."""
        return byte_size(self.shape, self.dtype)

    def row(self, index: int) -> Tensor:
        """One entry of the leading axis, where it lies.

        Raises:
            IndexError: there is none of this index.
        """
        shape = self.shape[1:]
        if not 0 <= index < self.shape[0]:
            raise IndexError(f"there is no row {index} in a tensor of {self.shape[0]} rows")
        address = self.address + index * byte_size(shape, self.dtype)
        return DeviceTensor(self.device, self.memory, address, shape, self.dtype)

    def numpy(self) -> Host:
        """A copy on the host, after all that was queued.

        Raises:
            GraphError: NumPy has no type for it, or the device failed.
        """
        values = np.empty(self.shape, host_dtype(self.dtype))
        if values.size:
            self.device.download(self.address, values)
        return values

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3, for CuPy, PyCUDA, Numba and torch: the reader's stream waits for `stream`."""
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": host_dtype(self.dtype).str,
            "data": (self.address, False),
            "strides": None,
            "stream": self.device.stream,
        }

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        return self.device.share(self, stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device.dlpack_kind, self.device.index
