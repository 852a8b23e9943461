"""The program that started this one: its end is noticed, where it holds the other end of standard input."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Callable

from ..terminal import note


def watch_parent(end: Callable[[], object]) -> None:
    """Calls `end` once standard input closes, where it is a pipe or socket: whoever started us holds the other end."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode if sys.stdin is not None else 0
    except (OSError, ValueError):
        mode = 0
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        threading.Thread(target=_read_to_the_end, args=(end,), name="mutoscope-parent", daemon=True).start()


def _read_to_the_end(end: Callable[[], object]) -> None:
    """In a thread of its own, as reading from a pipe cannot be waited for on every system."""
    try:
        while os.read(sys.stdin.fileno(), 65536):
            continue
    except (OSError, ValueError):
        pass
    note("standard input closed; ending")
    end()
