"""The memory of a process over time, of this one."""

from __future__ import annotations

import os
import sys

import pytest
from mutoscope_bench.memory_trace import MOST_POINTS, MemoryTrace

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_a_trace_sees_memory_that_was_taken() -> None:
    trace = MemoryTrace()
    trace.start(os.getpid())
    held = bytearray(64 << 20)
    while not trace.points or trace.points[-1][1] < len(held):
        pass
    trace.stop()
    assert len(trace.points) <= MOST_POINTS
