"""What becomes of a video that a worker began: its row, and its files. Knows the order in which a kill does no harm.

Files that will never be whole go before the row says so. So what a kill leaves behind still has an owner, and others
notice that this worker has ended.
"""

from __future__ import annotations

import time
from typing import Any

from .data_folder import remove_folder
from .jobs import RUNNING, Job, JobTable
from .owners import Owners
from .studio import Studio

KILLED = {
    "code": "worker_ended",
    "message": "the process that made this video ended: it was killed, or the system ran out of memory; ask for a "
    "smaller height, width or num_frames",
    "param": None,
}


class Outcomes:
    """The ends that jobs of one data folder can come to."""

    def __init__(self, studio: Studio, table: JobTable, owners: Owners) -> None:
        self._studio, self._table, self._owners = studio, table, owners

    def complete(self, job: Job, receipt: dict[str, Any]) -> bool:
        """Its file is on the disk. Says whether it was still wanted; if not, the file is removed."""
        return self._wanted(job, self._table.complete(job, receipt, time.time()))

    def fail(self, job: Job, error: dict[str, Any]) -> None:
        """It cannot be made."""
        self._remove_files(job.id)
        self._wanted(job, self._table.fail(job, error, time.time()))

    def give_back(self, job: Job, *, counts: bool) -> None:
        """It is queued again, unless it was cancelled or deleted.

        Args:
            job: as its worker claimed it.
            counts: whether what was begun counts as an attempt.
        """
        self._remove_files(job.id)
        self._wanted(job, self._table.give_back(job, counts=counts))

    def try_again(self, job: Job, error: dict[str, Any]) -> None:
        """It is queued again; after too many attempts it fails."""
        if job.attempts < self._studio.attempts:
            self.give_back(job, counts=True)
        else:
            self.fail(job, {**error, "message": f"{error['message']} ({job.attempts} attempts)"})

    def release(self, owner: str) -> list[str]:
        """Settles all jobs of a worker that has ended, or that has lost track; gives their ids."""
        jobs = self._table.held(owner)
        for job in jobs:
            if job.state == RUNNING:
                self.try_again(job, KILLED)
            else:
                self._let_go(job)
        return [job.id for job in jobs]

    def release_ended(self) -> list[str]:
        """Settles the jobs of all workers that have ended without doing it; gives their ids."""
        found: list[str] = []
        for name in {*self._table.owners(), *self._owners.left_locks()}:
            with self._owners.ended(name) as ended:
                if ended:
                    found += self.release(name)
        return found

    def delete(self, id: str) -> None:
        """Removes the files, and then the row, of a job that nobody sees any more and that no worker has."""
        self._remove_files(id)
        self._studio.given.remove(id)
        self._table.forget(id)

    def _wanted(self, job: Job, wanted: bool) -> bool:
        if not wanted:
            self._let_go(job)
        return wanted

    def _let_go(self, job: Job) -> None:
        """Of a job that was cancelled or deleted meanwhile."""
        self._remove_files(job.id)
        self._table.let_go(job)
        if self._table.get(job.id) is None:  # deleted, by whoever left it to this worker
            self.delete(job.id)

    def _remove_files(self, id: str) -> None:
        """Those that were made; the files of a client stay for as long as the row."""
        remove_folder(self._studio.place(id))
