"""A lock between processes that dies with its holder, however that ends. Knows files, nothing of what they guard."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .portable_files import remove


@contextmanager
def file_lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Holds the lock, whose file goes when nobody does. Gives whether it is held: always, when waiting.

    Where the file system has no locks, that the file exists is the lock. What a killed holder left is then recognised
    on the same machine alone; on another it stays until somebody removes it.
    """
    with ExitStack() as held:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "flock not supported")
                held.enter_context(FileLock(path, mode=0o600).acquire(blocking=wait))
        except Timeout:
            yield False
            return
        held.callback(remove, path)  # whoever waits for it sees that it is gone, and makes another
        yield True
