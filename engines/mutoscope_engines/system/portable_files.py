"""What systems do differently with files: links, owners, syncing, and files that another process has open.

Knows one file at a time, and nothing of what is in it. Why Windows trusts a file for its place alone: decision 0020.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

OPEN_ELSEWHERE_S = (0.01, 0.05, 0.2, 0.5)  # pauses between tries, three quarters of a second in all
_ROOT = 0  # the administrator's user


def open_unlinked(path: Path) -> BufferedReader:
    """Opens a file to read it, but never what a link leads to.

    Raises:
        OSError: it is a link, or cannot be read.
    """
    if sys.platform == "win32":  # where making a link takes a privilege
        return path.open("rb")
    return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")


def is_ours(facts: os.stat_result, *, without: int) -> bool:
    """Whether a file belongs to this user, and none of these bits of its mode are set, such as 0o022.

    Windows has neither: there the access list of the user's profile folder keeps others out.
    """
    return sys.platform == "win32" or (facts.st_uid == os.getuid() and not facts.st_mode & without)


def content(path: Path) -> mmap.mmap:
    """A file's bytes, which stay readable when the file is removed, and which nobody can change.

    They are a copy where somebody else than this user and the administrator may write to the file; on Windows always,
    because nobody could remove a file that is mapped, and its mode says nothing.

    Raises:
        OSError: it is a link, or cannot be read.
        ValueError: it is empty.
    """
    with open_unlinked(path) as file:
        facts = os.fstat(file.fileno())
        if sys.platform != "win32" and facts.st_uid in (os.getuid(), _ROOT) and not facts.st_mode & 0o022:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        size = facts.st_size
        if not size:
            raise ValueError("it is empty")
        data = mmap.mmap(-1, size)
        file.readinto(data)
        return data


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's names, are on the disk. Windows cannot be asked that of a folder."""
    is_folder = path.is_dir()
    if is_folder and sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)  # Windows syncs what was opened to write
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_private(path: Path, data: bytes, *, replaces: bool = False) -> None:
    """Writes a file that only this user can open, whole under its name or not at all; its folder must be there.

    Args:
        path: where it goes.
        data: all of it.
        replaces: whether it takes the place of one that is there, which stays otherwise: of several that write it at
            once, one wins for all.

    Raises:
        OSError: it cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 600
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replaces:
            replace(Path(temporary), path)
            return
        with suppress(FileExistsError):
            os.link(temporary, path)  # whole under its name, and never over another
    finally:
        Path(temporary).unlink(missing_ok=True)


def replace(source: Path, target: Path, pauses: Sequence[float] = OPEN_ELSEWHERE_S) -> None:
    """`os.replace`, which Windows refuses for as long as another process has the target open: a moment, if it is small.

    Args:
        pauses: seconds between tries, there.

    Raises:
        OSError: it cannot be replaced, or was open for most of a second.
    """
    if sys.platform == "win32":
        for pause in pauses:
            try:
                os.replace(source, target)
                return
            except PermissionError:
                time.sleep(pause)
    os.replace(source, target)


def remove(path: Path) -> None:
    """Removes a file, if it is there. On Windows one that is open elsewhere stays, for a later call.

    Raises:
        OSError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        if sys.platform != "win32":
            raise
