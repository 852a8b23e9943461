"""The hash by which files are named and compared everywhere, and what tells that a file was not written to since."""

from __future__ import annotations

import hashlib
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

_SETTLED_NS = 2_000_000_000  # after so long, a file that is written to again has another time on every file system


class FileVersion(NamedTuple):
    """Of a file: another whenever its content is written to."""

    size: int
    modified_ns: int
    changed_ns: int  # on Windows when it was made; elsewhere no program can set it back

    @classmethod
    def of(cls, file: BinaryIO) -> FileVersion:
        """That of an open file."""
        found = os.fstat(file.fileno())
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits; reads it in pieces.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """As `file_sha256`, for files that are asked about again and again: one that was not written to is read once.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        version = FileVersion.of(file)
    if abs(time.time_ns() - max(version.modified_ns, version.changed_ns)) < _SETTLED_NS:
        return file_sha256(path)
    return _sha256_of(path.absolute(), version)


@lru_cache(maxsize=256)
def _sha256_of(path: Path, version: FileVersion) -> str:  # a file that is written to meanwhile is asked for by another
    return file_sha256(path)
