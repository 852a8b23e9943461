"""Takes files out of the page cache, so that loading them is cold. Knows Linux; needs no permission.

Pages that another process has mapped stay, so nothing that uses the files may run meanwhile.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path


def drop(folder: Path) -> str | None:
    """Drops every file below a folder; `None` when they are out, else what kept them in."""
    if sys.platform != "linux":
        return "this system does not let a program drop files from the page cache"
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # what is not written yet cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            return f"the file system does not drop {path.name} from the page cache: {error.strerror}"
        finally:
            os.close(descriptor)
    return _still_there(files)


def _still_there(files: Iterable[Path]) -> str | None:
    """Asks for the first bytes of the largest file, but only from memory."""
    largest = max(files, key=lambda path: path.stat().st_size, default=None)
    if largest is None or sys.platform != "linux":
        return None
    descriptor = os.open(largest, os.O_RDONLY)
    try:
        os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return None  # it would have had to wait for the disk
    except OSError as error:
        return f"whether files were dropped from the page cache is not known here: {error.strerror}"
    finally:
        os.close(descriptor)
    return "the page cache kept the files, which another program has mapped or the file system holds in memory"
