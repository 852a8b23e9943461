"""NVIDIA's management library by its C interface: names, memory and energy of the GPUs. Nothing is installed for it.

Knows a few calls. Where there is no driver, there are no GPUs.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


@cache
def open_library() -> Any:
    """NVIDIA's management library, or `None` where there is no driver."""
    try:
        library = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None


@cache
def _devices() -> tuple[Any, ...]:
    library = open_library()
    count = ctypes.c_uint(0)
    if library is None or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return ()
    handles = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) == 0:
            handles.append(handle)
    return tuple(handles)


def gpu_names() -> list[str]:
    """The names of all NVIDIA GPUs; none where the driver is not there."""
    names = []
    for device in _devices():
        name = ctypes.create_string_buffer(96)
        if open_library().nvmlDeviceGetName(device, name, ctypes.c_uint(96)) == 0:
            names.append(name.value.decode(errors="replace"))
    return names


def driver_version() -> str | None:
    """Such as "580.95.05"; `None` without a GPU."""
    version = ctypes.create_string_buffer(80)
    if not _devices() or open_library().nvmlSystemGetDriverVersion(version, ctypes.c_uint(80)):
        return None
    return version.value.decode(errors="replace")


def used_bytes() -> int | None:
    """Of all GPUs, by all programs; `None` without a GPU."""
    total, memory = 0, _Memory()
    for device in _devices():
        if open_library().nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) == 0:
            total += memory.used
    return total if _devices() else None


def energy_j() -> float | None:
    """Joules that all GPUs have taken since their driver was loaded; `None` where they do not tell."""
    total = 0.0
    for device in _devices():
        millijoules = ctypes.c_ulonglong(0)
        if open_library().nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
            return None  # older than Volta
        total += millijoules.value / 1000
    return total if _devices() else None
