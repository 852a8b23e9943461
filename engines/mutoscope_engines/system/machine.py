"""What this process may use of the machine: cores, their instructions, memory. Knows the limits that are set to it."""

from __future__ import annotations

import os
import platform
import re
import sys
from functools import cache
from math import floor
from pathlib import Path

import psutil

from . import control_groups

CPU_INFO, STATUS = Path("/proc/cpuinfo"), Path("/proc/self/status")


def usable_cores() -> int:
    """The cores that this process may run on, or the whole cores of its CPU quota where those are fewer; at least 1."""
    cores = os.cpu_count() or 1
    if sys.platform != "darwin":  # which binds no process to cores
        cores = len(psutil.Process().cpu_affinity()) or cores  # Windows names none if a process may use more than 64
    limit = control_groups.cpu_limit()
    return max(1, cores if limit is None else min(cores, floor(limit)))


@cache
def cpu_flags(cpu_info: Path = CPU_INFO) -> frozenset[str]:
    """What the CPU says that it can, in Linux's words: "avx512_vnni", "amx_bf16"; none where Linux does not tell."""
    try:
        text = cpu_info.read_text("utf-8", "replace")
    except OSError:
        return frozenset()
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())


def cpu_model(cpu_info: Path = CPU_INFO) -> str:
    """The processor's name for a person, from Linux's file where there is one."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", cpu_info.read_text("utf-8", "replace"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def peak_memory_bytes(status: Path = STATUS) -> int:
    """Most bytes of memory that this process has held at a time so far, pages of mapped files included."""
    try:
        # Before `getrusage`, to which Linux adds what the process had that started this one.
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text("utf-8"), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) of the two systems
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_bytes() -> int:
    """Bytes of physical memory, or of this process's limit where that is less."""
    physical = int(psutil.virtual_memory().total)
    limit = control_groups.memory_limit_bytes()
    return physical if limit is None else min(physical, limit)
