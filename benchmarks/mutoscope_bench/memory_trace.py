"""Watches the memory of another process while it starts. Knows psutil and NVML. Knows nothing of what that does."""

from __future__ import annotations

import threading
import time

import psutil

from . import nvml

INTERVAL_S = 0.02
MOST_POINTS = 150


class MemoryTrace:
    """Resident bytes of a process over time, and the most that the GPUs held more than before it began.

    Reading costs the watched process nothing.
    """

    def __init__(self) -> None:
        self._points: list[tuple[float, int]] = []
        self._device_before = nvml.used_bytes()
        self._device_most: int | None = None
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, pid: int) -> None:
        """Watches the process `pid` from now on."""
        self._thread = threading.Thread(target=self._watch, args=(pid, time.monotonic()), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends watching; `points` and `device_bytes` stay."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def points(self) -> tuple[tuple[float, int], ...]:
        """(seconds since the process began, resident bytes), of every stretch its largest."""
        size = -(-len(self._points) // MOST_POINTS) or 1
        stretches = [self._points[start : start + size] for start in range(0, len(self._points), size)]
        return tuple(max(stretch, key=lambda point: point[1]) for stretch in stretches)

    @property
    def device_bytes(self) -> int | None:
        """The most that all GPUs held more than at first; `None` where nothing tells it."""
        return self._device_most

    def _watch(self, pid: int, started: float) -> None:
        while not self._done.wait(INTERVAL_S):
            try:
                resident = psutil.Process(pid).memory_info().rss
            except psutil.Error:
                return  # it has ended
            self._points.append((round(time.monotonic() - started, 3), resident))
            used = nvml.used_bytes()
            if used is not None and self._device_before is not None:
                self._device_most = max(self._device_most or 0, used - self._device_before)
