"""The SQLite file of a data folder, in which each table has a connection of its own. Knows no table."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Self


class Database:
    """One connection, for any thread.

    Args:
        path: the file.
        durable: whether a change has to survive a power cut. A kill of the process it survives anyway.
    """

    def __init__(self, path: Path, *, durable: bool) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        self._connection.row_factory = sqlite3.Row
        for setting in ("journal_mode = WAL", f"synchronous = {'FULL' if durable else 'NORMAL'}", "secure_delete = ON"):
            self._connection.execute(f"PRAGMA {setting}")

    @property
    def version(self) -> int:
        """Another number each time that another connection has changed something. Costs almost nothing."""
        with self._lock:
            [number] = self._connection.execute("PRAGMA data_version").fetchone()
        return int(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing may be asked of it afterwards."""
        with self._lock:
            self._connection.close()
