"""The queue and the gallery: one row a video in an SQLite table that survives a kill, and a power cut. Knows SQL.

A row is durable before its video is promised. Several processes may use one table at the same time. Progress is no
row's business: a worker keeps it in memory, and tells another process by `news.py`.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import OutputError
from .database import Database

QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED = "queued", "running", "completed", "failed", "cancelled"
FINISHED = (COMPLETED, FAILED, CANCELLED)
STATES = (QUEUED, RUNNING, *FINISHED)
DELETED = "deleted"  # its files are on their way out; no caller sees it
STATE = "state"  # the kind of news that a job's state is another

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
    fingerprint TEXT,
    owner TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, attempts, number);
CREATE INDEX IF NOT EXISTS jobs_by_owner ON jobs (owner) WHERE owner IS NOT NULL;
CREATE TABLE IF NOT EXISTS news (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    video TEXT NOT NULL,
    kind TEXT NOT NULL,
    data TEXT,
    UNIQUE (video, kind)
) STRICT;
CREATE TABLE IF NOT EXISTS settings (content TEXT NOT NULL) STRICT;
"""
_VERSION = 2


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
    owner: str | None = None  # the worker that makes it, or that has not let go of its files yet


_Run = Callable[..., sqlite3.Cursor]  # SQL and its values
_COLUMNS = [field.name for field in fields(Job) if field.name != "number"]
_JSON = ("request", "error", "receipt")


class JobTable(Database):
    """All jobs of one data folder. Any thread may use it; each method is one transaction, durable when it returns.

    Args:
        path: its file; made where it is missing.
        tells: whether changes of state are news for another process, which has the clients.

    Raises:
        OutputError: the file is one of another version.
    """

    def __init__(self, path: Path, *, tells: bool = False) -> None:
        self._tells = tells
        # For the owner alone from its first byte on; SQLite gives its further files the same permissions.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        super().__init__(path, durable=True)
        [version] = self._connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            self._connection.close()
            raise OutputError(f"{path} is a queue of another version of Mutoscope; name a new folder as data")
        self._connection.executescript(_SCHEMA)
        if version != _VERSION:
            self._connection.execute(f"PRAGMA user_version = {_VERSION}")

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

    def get_keyed(self, idempotency_key: str) -> Job | None:
        """The job that was asked for with a key, or `None` where there is none, or none any more."""
        with self._transaction() as run:
            row = run("SELECT * FROM jobs WHERE idempotency_key = ?", idempotency_key).fetchone()
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

    def ahead_of(self, ids: Sequence[str]) -> dict[str, int]:
        """How many queued jobs begin before each of some, by id; those of them that are not queued are left out."""
        with self._transaction() as run:
            rows = run(
                "SELECT id, place FROM (SELECT id, row_number() OVER (ORDER BY attempts, number) - 1 AS place "
                f"FROM jobs WHERE state = ?) WHERE id IN ({', '.join('?' * len(ids))})",
                QUEUED, *ids,
            )  # fmt: skip
            return {row["id"]: row["place"] for row in rows}

    def claim(self, owner: str, now: float) -> Job | None:
        """The next job, a worker's from now on. One that failed before lets the others go first."""
        with self._transaction() as run:
            row = run(
                "UPDATE jobs SET state = ?, attempts = attempts + 1, started_at = ?, owner = ? WHERE number = "
                "(SELECT number FROM jobs WHERE state = ? ORDER BY attempts, number LIMIT 1) RETURNING *",
                RUNNING, now, owner, QUEUED,
            ).fetchone()  # fmt: skip
            if row is None:
                return None
            self._tell(run, row["id"])
            return _job(row)

    def is_wanted(self, job: Job) -> bool:
        """Whether the worker that claimed a job still has to make it: it may be cancelled or deleted."""
        with self._lock:
            row = self._connection.execute(
                "SELECT 1 FROM jobs WHERE id = ? AND state = ? AND owner = ?", (job.id, RUNNING, job.owner)
            ).fetchone()
        return row is not None

    def complete(self, job: Job, receipt: dict[str, Any], now: float) -> bool:
        """Says whether it was still wanted; its file must be on the disk by then."""
        change = "state = ?, finished_at = ?, receipt = ?, owner = NULL"
        return self._settle(job, change, COMPLETED, now, json.dumps(receipt))

    def fail(self, job: Job, error: dict[str, Any], now: float) -> bool:
        """Says whether it was still wanted; its files must be gone by then."""
        change = "state = ?, finished_at = ?, error = ?, owner = NULL"
        return self._settle(job, change, FAILED, now, json.dumps(error))

    def give_back(self, job: Job, *, counts: bool) -> bool:
        """Queues a running job again; says whether it was still wanted. Its files must be gone by then.

        Args:
            job: as its worker claimed it.
            counts: whether what was begun counts as an attempt.
        """
        return self._settle(job, "state = ?, attempts = attempts - ?, owner = NULL", QUEUED, 0 if counts else 1)

    def let_go(self, job: Job) -> None:
        """The worker of a cancelled job has removed its files."""
        with self._transaction() as run:
            run("UPDATE jobs SET owner = NULL WHERE id = ? AND owner = ?", job.id, job.owner)

    def cancel(self, id: str, now: float) -> bool:
        """Says whether it was queued or running. A worker that makes it has to let go of it afterwards."""
        error = json.dumps({"code": "cancelled", "message": "this video was cancelled", "param": None})
        with self._transaction() as run:
            done = run(
                "UPDATE jobs SET state = ?, finished_at = ?, error = ? WHERE id = ? AND state IN (?, ?)",
                CANCELLED, now, error, id, QUEUED, RUNNING,
            )  # fmt: skip
            return self._told(run, id, done)

    def owners(self) -> list[str]:
        """The workers that have jobs, whether they live or not."""
        with self._transaction() as run:
            return [row["owner"] for row in run("SELECT DISTINCT owner FROM jobs WHERE owner IS NOT NULL")]

    def held(self, owner: str | None = None) -> list[Job]:
        """The jobs that a worker has, or any; cancelled and deleted ones too, until it lets go of them."""
        condition, values = ("owner IS NOT NULL", ()) if owner is None else ("owner = ?", (owner,))
        with self._transaction() as run:
            return [_job(row) for row in run(f"SELECT * FROM jobs WHERE {condition}", *values)]

    def mark_deleted(self, id: str) -> Job | None:
        """Nobody sees the job from now on. Gives it as it was, or `None` where there is none."""
        with self._transaction() as run:
            row = run("SELECT * FROM jobs WHERE id = ? AND state != ?", id, DELETED).fetchone()
            if row is None:
                return None
            done = run("UPDATE jobs SET state = ?, idempotency_key = NULL WHERE id = ?", DELETED, id)
            self._told(run, id, done)
            return _job(row)

    def deleted(self) -> list[str]:
        """The ids of jobs whose files may still be there, and that no worker has."""
        with self._transaction() as run:
            return [row["id"] for row in run("SELECT id FROM jobs WHERE state = ? AND owner IS NULL", DELETED)]

    def forget(self, id: str) -> None:
        """Removes the row, and overwrites what it held, once its files are gone."""
        with self._transaction() as run:
            run("DELETE FROM jobs WHERE id = ?", id)
            run("DELETE FROM news WHERE video = ?", id)
        with self._lock:  # the log of changes still has the row
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def finished_before(self, when: float) -> list[str]:
        """The ids of jobs that ended before then."""
        with self._transaction() as run:
            return [row["id"] for row in run("SELECT id FROM jobs WHERE finished_at < ? AND state != ?", when, DELETED)]

    def settings(self) -> str:
        """What the server said last of how videos are made; nothing where it never did."""
        with self._lock:
            row = self._connection.execute("SELECT content FROM settings").fetchone()
        return "" if row is None else str(row["content"])

    def set_settings(self, content: str) -> None:
        """For the workers in other processes."""
        with self._transaction() as run:
            run("DELETE FROM settings")
            run("INSERT INTO settings (content) VALUES (?)", content)

    def _settle(self, job: Job, change: str, *values: Any) -> bool:
        """Changes the row of a running job, if it is still that worker's."""
        with self._transaction() as run:
            done = run(
                f"UPDATE jobs SET {change} WHERE id = ? AND state = ? AND owner = ?",
                *values,
                job.id,
                RUNNING,
                job.owner,
            )
            return self._told(run, job.id, done)

    def _told(self, run: _Run, id: str, done: sqlite3.Cursor) -> bool:
        """Whether there was something to change; if so, it is news."""
        if not done.rowcount:
            return False
        self._tell(run, id)
        return True

    def _tell(self, run: _Run, id: str) -> None:
        """In the same transaction, so that no kill comes between a change and the news of it."""
        run("DELETE FROM news WHERE video = ?", id)
        if self._tells:
            run("INSERT INTO news (video, kind) VALUES (?, ?)", id, STATE)

    @contextmanager
    def _transaction(self) -> Iterator[_Run]:
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
