"""Standard output and error of a command, which take any text, and are there whatever started it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO


@contextmanager
def usable_streams() -> Iterator[None]:
    """Within it, `sys.stdout` and `sys.stderr` can be printed to; the caller gets its own back.

    A daemon or a windowed program may have none: what is printed then goes nowhere. A character that the encoding of a
    stream lacks is printed as its number, such as \\u4e00.
    """
    _open_missing_descriptors()
    with ExitStack() as restored:
        for name in ("stdout", "stderr"):
            stream: IO[str] | None = getattr(sys, name)
            if stream is None:
                restored.callback(setattr, sys, name, None)
                setattr(sys, name, restored.enter_context(open(os.devnull, "w", encoding="utf-8")))
            elif isinstance(stream, io.TextIOWrapper):
                restored.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors="backslashreplace")
        yield


def _open_missing_descriptors() -> None:
    """Or the next file to be opened gets the number of standard error, and a library's warning ends up in a video."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
