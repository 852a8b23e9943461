"""Which workers of a data folder live. Each holds a lock, which the system opens again however the worker ends."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mutoscope_engines.system.file_lock import file_lock


class Owners:
    """The locks of the workers in a folder, which is made where it is missing."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = folder

    @contextmanager
    def hold(self) -> Iterator[str]:
        """The name of a new worker, which lives until the end of the `with`."""
        name = f"{os.getpid()}-{secrets.token_hex(8)}"
        with file_lock(self._folder / name, wait=True):
            yield name

    def left_locks(self) -> list[str]:
        """The names of workers whose locks are there, whether they live or not."""
        return os.listdir(self._folder)

    @contextmanager
    def ended(self, name: str) -> Iterator[bool]:
        """Whether a worker has ended. Until the end of the `with`, nobody else is told so."""
        with file_lock(self._folder / name, wait=False) as held:
            yield held
