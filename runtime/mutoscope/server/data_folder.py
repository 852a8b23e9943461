"""The folder with the queue and the videos: for the eyes of its owner alone. Knows modes and locks."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
from mutoscope_engines.system.user_folders import data_folder

from ..errors import OutputError, RequestError


def default_folder() -> Path:
    """Where the queue and the videos are unless somebody names another place."""
    return data_folder("the queue and the videos of the server") / "server"


def refuse_public(folder: Path) -> None:
    """
    Raises:
        RequestError: other users can look into the folder.
    """
    if sys.platform != "win32" and folder.stat().st_mode & 0o077:
        raise RequestError(f"data={str(folder)!r} lets other users in; run: chmod 700 {folder}, or name a new folder")


def remove_folder(folder: Path) -> None:
    """Removes a folder with all that is in it, if it is there. Others may add and rename files in it meanwhile.

    Raises:
        OSError: the disk refuses.
    """
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                raise


@contextmanager
def owned(folder: Path) -> Iterator[Path]:
    """The folder, made where it is missing, for one server at a time.

    Raises:
        RequestError: another server uses it, or other users can look into it.
        OutputError: it cannot be made or written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / "lock", blocking=False)
        lock.acquire()
    except filelock.Timeout:
        raise RequestError(f"another server uses data={str(folder)!r}; name another folder") from None
    except OSError as error:
        raise OutputError(f"data={str(folder)!r} cannot be used: {error.strerror}; name another folder") from error
    try:
        refuse_public(folder)
        yield folder
    finally:
        lock.release()
