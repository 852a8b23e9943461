"""A lock between processes that dies with its holder, however that ends. Knows files, nothing of what they guard."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def file_lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Holds the lock, whose file is there as long as somebody does. Gives whether it is held: always, when waiting."""
    while True:
        with ExitStack() as held:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            if _is_at(descriptor, path):
                held.callback(path.unlink, missing_ok=True)
                yield True
                return
            # Whoever held it removed the file meanwhile, so that this lock keeps nobody out.


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
