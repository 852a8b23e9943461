"""How far a batch is, counted in its folder: the work of all its workers, wherever they run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from .receipts import failures, keys_done
from .store import CLAIMS, Store
from .task import Batch


@dataclass(frozen=True)
class Tally:
    """How far a batch is. Videos that several jobs ask for count once.

    Attributes:
        total: videos.
        done: finished, earlier runs included.
        failed: left alone after too many attempts.
        running: claimed by a worker.
        videos_per_hour: since this run began; `None` before its first.
        left_s: seconds until all are done at this pace; `None` where there is none.
    """

    total: int
    done: int
    failed: int
    running: int
    videos_per_hour: float | None
    left_s: float | None

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do."""
        return self.done + self.failed >= self.total


class Counter:
    """Counts a batch again and again.

    Args:
        batch: what there is to do.
        store: where it is done.
        clock: seconds, from any start.
    """

    def __init__(self, batch: Batch, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = {task.key for task in batch.tasks}
        self._attempts = batch.options.attempts
        self._store, self._clock, self._started = store, clock, clock()
        self.done: set[str] = keys_done(store) & self._keys
        self.failed: set[str] = set()
        self._done_before = len(self.done)

    def look(self) -> Tally:
        """What the folder holds now. `done` and `failed` have the keys."""
        self.done = keys_done(self._store) & self._keys
        counts = failures(self._store)
        self.failed = {key for key in self._keys - self.done if counts.get(key, 0) >= self._attempts}
        made, elapsed = len(self.done) - self._done_before, self._clock() - self._started
        pace = made / elapsed if made and elapsed > 0 else None
        left = len(self._keys) - len(self.done) - len(self.failed)
        return Tally(
            total=len(self._keys),
            done=len(self.done),
            failed=len(self.failed),
            running=len(self._store.names(CLAIMS) & (self._keys - self.done - self.failed)),
            videos_per_hour=None if pace is None else 3600 * pace,
            left_s=None if pace is None else left / pace,
        )
