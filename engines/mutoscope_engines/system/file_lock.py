"""A lock between processes that dies with its holder, however that ends. Knows files, nothing of what they guard."""

from __future__ import annotations

import errno
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from .portable_files import remove

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # of network file systems that have none


@contextmanager
def file_lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Holds the lock, whose file goes when nobody does. Gives whether it is held: always, when waiting.

    Where the file system has no locks, that the file exists is the lock. What a killed holder left is then recognised
    on the same machine alone; on another it stays until somebody removes it.
    """
    native = _has_locks(path.parent)
    lock = (FileLock if native else SoftFileLock)(path, mode=0o600)
    with ExitStack() as held:
        try:
            held.enter_context(lock.acquire(blocking=wait))
        except Timeout:
            yield False
            return
        if native:
            held.callback(remove, path)  # whoever waits for it sees that it is gone, and makes another
        yield True


def _has_locks(folder: Path) -> bool:
    """Asked of the system, because filelock falls back with a warning, and older versions then give one lock to two."""
    if sys.platform == "win32":
        return True
    import fcntl

    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise
    return True
