"""The queue and the gallery: one row a video in an SQLite table that survives a kill, and a power cut. Knows SQL.

A row is durable before its video is promised. Progress is no row's business: it lives in the worker's memory.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED = "queued", "running", "completed", "failed", "cancelled"
FINISHED = (COMPLETED, FAILED, CANCELLED)
STATES = (QUEUED, RUNNING, *FINISHED)
DELETED = "deleted"  # its files are on their way out; no caller sees it

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    model TEXT NOT NULL,
    request TEXT NOT NULL,
    num_frames INTEGER NOT NULL,
    height INTEGER NOT NULL,
    width INTEGER NOT NULL,
    fps TEXT NOT NULL,
    created_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    receipt TEXT,
    remixed_from TEXT,
    idempotency_key TEXT UNIQUE,
    fingerprint TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, attempts, number);
"""
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video that was asked for. Times are seconds since 1970."""

    id: str
    model: str
    request: dict[str, Any]  # all of it, the seed included, as JSON has it
    num_frames: int
    height: int
    width: int
    fps: str
    created_at: float
    number: int = 0  # the order of the queue
    state: str = QUEUED
    started_at: float | None = None
    finished_at: float | None = None
    attempts: int = 0
    error: dict[str, Any] | None = None  # code, message, and param where one is at fault
    receipt: dict[str, Any] | None = (
        None  # of a finished one: its file's hashes and size, and the seconds of each stage
    )
    remixed_from: str | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None  # of what was asked for with that key


_COLUMNS = [field.name for field in fields(Job) if field.name != "number"]
_JSON = ("request", "error", "receipt")


class JobTable:
    """All jobs of one data folder. Any thread may use it; each method is one transaction, durable when it returns."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        # For the owner alone from its first byte on; SQLite gives its further files the same permissions.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        self._connection.row_factory = sqlite3.Row
        for setting in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
            self._connection.execute(f"PRAGMA {setting}")
        self._connection.executescript(_SCHEMA)
        self._connection.execute(f"PRAGMA user_version = {_VERSION}")

    def close(self) -> None:
        """Nothing may be asked of it afterwards."""
        with self._lock:
            self._connection.close()

    def add(self, job: Job, most_unfinished: int) -> Job | None:
        """The row that is there now: a new one, or that of its idempotency key; `None` where the queue is full."""
        with self._transaction() as run:
            if job.idempotency_key is not None:
                before = run("SELECT * FROM jobs WHERE idempotency_key = ?", job.idempotency_key).fetchone()
                if before is not None:
                    return _job(before)
            [unfinished] = run("SELECT count(*) FROM jobs WHERE state IN (?, ?)", QUEUED, RUNNING).fetchone()
            if unfinished >= most_unfinished:
                return None
            values = {name: getattr(job, name) for name in _COLUMNS}
            for name in _JSON:
                values[name] = None if values[name] is None else json.dumps(values[name])
            places = ", ".join("?" * len(_COLUMNS))
            row = run(f"INSERT INTO jobs ({', '.join(_COLUMNS)}) VALUES ({places}) RETURNING *", *values.values())
            return _job(row.fetchone())

    def get(self, id: str) -> Job | None:
        """One job, or `None` where there is none, or none any more."""
        with self._transaction() as run:
            row = run("SELECT * FROM jobs WHERE id = ? AND state != ?", id, DELETED).fetchone()
            return None if row is None else _job(row)

    def page(
        self, *, after: str | None, limit: int, newest_first: bool, states: Sequence[str] = STATES, skip: int = 0
    ) -> list[Job]:
        """At most `limit` jobs in the order of their making: those after `after`, without the first `skip` of them."""
        direction, sign = ("DESC", "<") if newest_first else ("ASC", ">")
        condition = f"state IN ({', '.join('?' * len(states))})"
        values: list[Any] = list(states)
        if after is not None:
            condition += f" AND number {sign} (SELECT number FROM jobs WHERE id = ?)"
            values.append(after)
        with self._transaction() as run:
            order = f"ORDER BY number {direction} LIMIT ? OFFSET ?"
            rows = run(f"SELECT * FROM jobs WHERE {condition} {order}", *values, limit, skip)
            return [_job(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each state."""
        with self._transaction() as run:
            found = dict(tuple(row) for row in run("SELECT state, count(*) FROM jobs GROUP BY state"))
        return {state: found.get(state, 0) for state in STATES}

    def ahead_of(self, job: Job) -> int:
        """How many queued jobs begin before this one."""
        with self._transaction() as run:
            [count] = run(
                "SELECT count(*) FROM jobs WHERE state = ? AND (attempts, number) < (?, ?)",
                QUEUED, job.attempts, job.number,
            ).fetchone()  # fmt: skip
            return int(count)

    def claim(self, now: float) -> Job | None:
        """The next job, running from now on. One that failed before lets the others go first."""
        with self._transaction() as run:
            row = run(
                "UPDATE jobs SET state = ?, attempts = attempts + 1, started_at = ? WHERE number = "
                "(SELECT number FROM jobs WHERE state = ? ORDER BY attempts, number LIMIT 1) RETURNING *",
                RUNNING, now, QUEUED,
            ).fetchone()  # fmt: skip
            return None if row is None else _job(row)

    def complete(self, id: str, receipt: dict[str, Any], now: float) -> bool:
        """Says whether it was still wanted; its file must be on the disk by then."""
        return self._finish(id, (RUNNING,), COMPLETED, now, receipt=receipt)

    def fail(self, id: str, error: dict[str, Any], now: float) -> bool:
        """Says whether it was still wanted."""
        return self._finish(id, (RUNNING,), FAILED, now, error=error)

    def cancel(self, id: str, now: float) -> bool:
        """Says whether it was queued or running."""
        error = {"code": "cancelled", "message": "this video was cancelled", "param": None}
        return self._finish(id, (QUEUED, RUNNING), CANCELLED, now, error=error)

    def give_back(self, id: str, *, counts: bool) -> bool:
        """Queues a running job again; says whether it was still wanted.

        Args:
            counts: whether what was begun counts as an attempt.
        """
        with self._transaction() as run:
            return bool(
                run(
                    "UPDATE jobs SET state = ?, attempts = attempts - ? WHERE id = ? AND state = ?",
                    QUEUED, 0 if counts else 1, id, RUNNING,
                ).rowcount
            )  # fmt: skip

    def orphans(self) -> list[Job]:
        """Jobs that no process runs: asked before the worker of a data folder begins."""
        with self._transaction() as run:
            return [_job(row) for row in run("SELECT * FROM jobs WHERE state = ?", RUNNING)]

    def mark_deleted(self, id: str) -> str | None:
        """Nobody sees the job from now on. Gives the state that it was in, or `None` where there is none."""
        with self._transaction() as run:
            row = run("SELECT state FROM jobs WHERE id = ? AND state != ?", id, DELETED).fetchone()
            if row is not None:
                run("UPDATE jobs SET state = ?, idempotency_key = NULL WHERE id = ?", DELETED, id)
            return None if row is None else str(row["state"])

    def deleted(self) -> list[str]:
        """The ids of jobs whose files may still be there."""
        with self._transaction() as run:
            return [row["id"] for row in run("SELECT id FROM jobs WHERE state = ?", DELETED)]

    def forget(self, id: str) -> None:
        """Removes the row, and overwrites what it held, once its files are gone."""
        with self._transaction() as run:
            run("DELETE FROM jobs WHERE id = ?", id)
        with self._lock:  # the log of changes still has the row
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def finished_before(self, when: float) -> list[str]:
        """The ids of jobs that ended before then."""
        with self._transaction() as run:
            return [row["id"] for row in run("SELECT id FROM jobs WHERE finished_at < ? AND state != ?", when, DELETED)]

    def _finish(self, id: str, before: Sequence[str], state: str, now: float, **columns: dict[str, Any]) -> bool:
        changes = "".join(f", {name} = ?" for name in columns)
        values = [json.dumps(value) for value in columns.values()]
        places = ", ".join("?" * len(before))
        with self._transaction() as run:
            done = run(
                f"UPDATE jobs SET state = ?, finished_at = ?{changes} WHERE id = ? AND state IN ({places})",
                state, now, *values, id, *before,
            )  # fmt: skip
            return bool(done.rowcount)

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield lambda sql, *values: self._connection.execute(sql, values)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def _job(row: sqlite3.Row) -> Job:
    values: dict[str, Any] = dict(row)
    for name in _JSON:
        values[name] = None if values[name] is None else json.loads(values[name])
    return Job(**values)
