"""A `Device` of host memory: what sessions do on a GPU, they do here, and what they must not do shows.

New memory is full of NaN, freed memory too, an address that is not its own is an error, and nothing that is queued
while a graph is captured is done before that graph is replayed.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from mutoscope_engines.device.device import Device, DeviceTensor
from mutoscope_engines.errors import GraphError, OutOfMemoryError, ShapeError

POISON = 0xFF


class HostMemory:
    def __init__(self, array: Any) -> None:
        self.array = array

    @property
    def address(self) -> int:
        return int(self.array.ctypes.data)


@dataclass
class ForeignMemory:
    address: int
    owner: Any


class HostDevice(Device):
    """Args:
    size: the bytes it pretends to have.
    """

    kind, dlpack_kind, index, stream = "cpu", 1, 0, 7

    def __init__(self, size: int = 2**40) -> None:
        super().__init__()
        self.size, self.used, self.peak = size, 0, 0
        self.log: list[str] = []
        self.captures = self.replays = self.sessions = 0
        self._captured: list[Callable[[], None]] | None = None
        self.fault = ""  # every call of the driver gives it, as from a kernel that failed until the process ends
        self.current_in = 0  # the thread of which it was made the current device last

    @property
    def captures_now(self) -> bool:
        return self._captured is not None

    def make_current(self) -> None:
        self._refuse_if_faulty()
        self.current_in = threading.get_ident()

    def allocate(self, size: int) -> HostMemory:
        if self.used + size > self.size:
            raise OutOfMemoryError(f"{size} bytes are too many: {self.used} of {self.size} are in use")
        block = np.full(size + 256, POISON, np.uint8)
        start = -block.ctypes.data % 256
        memory = HostMemory(block[start : start + max(size, 1)])
        self.used += size
        self.peak = max(self.peak, self.used)
        weakref.finalize(memory, self._free, block, size)
        return memory

    def _free(self, block: Any, size: int) -> None:
        block[:] = POISON
        self.used -= size

    def queue(self, work: Callable[[], None]) -> None:
        """For libraries that pretend to work on this device."""
        if self._captured is None:
            work()
        else:
            self._captured.append(work)

    def upload(self, address: int, values: Any) -> None:
        assert values.flags.c_contiguous
        self.log.append(f"upload {values.nbytes}")
        kept = values.copy()
        self.queue(lambda: ctypes.memmove(address, kept.ctypes.data, kept.nbytes) and None)

    def download(self, address: int, values: Any) -> None:
        self.log.append(f"download {values.nbytes}")
        ctypes.memmove(values.ctypes.data, address, values.nbytes)

    def copy(self, target: int, source: int, size: int) -> None:
        assert abs(target - source) >= size, "the places overlap"
        self.log.append(f"copy {size}")
        self.queue(lambda: ctypes.memmove(target, source, size) and None)

    def _refuse_if_faulty(self) -> None:
        if self.fault:
            raise GraphError(self.fault)

    def synchronize(self) -> None:
        self._refuse_if_faulty()
        self.log.append("synchronize")

    def enter(self) -> None:
        super().enter()
        self.sessions += 1

    def leave(self) -> None:
        super().leave()
        self.sessions -= 1

    def capture(self, queue_work: Callable[[], None]) -> Callable[[], None]:
        captured: list[Callable[[], None]] = []
        self._captured = captured
        try:
            queue_work()
        finally:
            self._captured = None
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            for work in captured:
                work()

        return replay

    def free_bytes(self) -> int:
        return self.size - self.used

    def adopt(self, array: Any) -> DeviceTensor:
        values = np.from_dlpack(array)
        if not values.flags.c_contiguous:
            raise ShapeError("make it contiguous first")
        address = values.ctypes.data
        return DeviceTensor(self, ForeignMemory(address, values), address, values.shape, str(values.dtype))

    def share(self, tensor: DeviceTensor, stream: int | None) -> Any:
        kind = ctypes.c_uint8 * max(tensor.size, 1)
        values = np.frombuffer(kind.from_address(tensor.address), np.uint8)[: tensor.size]
        return values.view(tensor.dtype).reshape(tensor.shape).__dlpack__()
