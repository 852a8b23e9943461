"""What workers in other processes tell the one with the clients: the newest of each kind for each video. Knows SQL.

It lies in the file of the jobs, and goes with them. `JobTable` puts changes of state there, with the change itself.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .database import Database
from .jobs import RUNNING, STATE

PROGRESS, PREVIEW = "progress", "preview"


@dataclass(frozen=True)
class Told:
    """One piece of news, of the kind `STATE`, `PROGRESS` or `PREVIEW`; the first has no data."""

    number: int
    video: str
    kind: str
    data: dict[str, Any]


class News(Database):
    """The news of one data folder, whose `JobTable` must exist. For any thread."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, durable=False)  # a progress that is lost will never be missed

    def put(self, video: str, kind: str, data: dict[str, Any]) -> None:
        """Replaces the last of its kind; lost where the disk is full, because the next may get through."""
        with self._lock, suppress(sqlite3.OperationalError):
            self._connection.execute(
                "INSERT OR REPLACE INTO news (video, kind, data) VALUES (?, ?, ?)", (video, kind, json.dumps(data))
            )

    def since(self, number: int) -> list[Told]:
        """What is new after a number, in order.

        Progress is left out where the video does not run any more.
        """
        with self._lock:
            rows = self._connection.execute(
                "SELECT news.* FROM news LEFT JOIN jobs ON jobs.id = news.video "
                "WHERE news.number > ? AND (news.kind = ? OR jobs.state = ?) ORDER BY news.number",
                (number, STATE, RUNNING),
            ).fetchall()
        return [Told(row["number"], row["video"], row["kind"], json.loads(row["data"] or "{}")) for row in rows]

    def forget_changes(self) -> None:
        """For who begins now, and knows all states anyway."""
        with self._lock:
            self._connection.execute("DELETE FROM news WHERE kind = ?", (STATE,))
