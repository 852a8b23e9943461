"""What this process may use of the machine: cores, their instructions, memory. Knows Linux's limits, if any."""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from pathlib import Path

import psutil

CPU_INFO = Path("/proc/cpuinfo")
CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own


def usable_cores() -> int:
    """The cores that this process may run on, or the whole cores of its CPU quota where those are fewer; at least 1."""
    # macOS and Windows cannot bind a process to cores
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _limit("cpu.max").partition(" ")
    if quota.isdecimal() and period.isdecimal() and int(period):
        cores = min(cores, int(quota) // int(period))
    return max(1, cores)


@cache
def cpu_flags() -> frozenset[str]:
    """What the CPU says that it can, in Linux's words: "avx512_vnni", "amx_bf16"; none where Linux does not tell."""
    try:
        text = CPU_INFO.read_text()
    except OSError:
        return frozenset()
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())


def peak_memory_bytes() -> int:
    """Most bytes of memory that this process has held at a time so far, pages of mapped files included."""
    try:
        # Before `getrusage`, to which Linux adds what the process had that started this one.
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
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
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _limit("memory.max")
    return min(physical, int(limit)) if limit.isdecimal() else physical


def _limit(name: str) -> str:
    try:
        return (CGROUP / name).read_text().strip()
    except OSError:
        return ""
