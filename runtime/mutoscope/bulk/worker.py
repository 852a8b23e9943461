"""The loop that every worker of a batch runs: claim a video, make it, put it and its receipt there once.

Knows the store and how a video is made. Knows nothing of who started it: this process, one beside it, or another
machine.
"""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from ..bundle.bundle import Bundle
from ..errors import (
    BackendUnavailableError,
    BundleError,
    CancelledError,
    EngineError,
    GraphError,
    MutoscopeError,
    OutputError,
    RequestError,
)
from ..making import Observer, make_file
from ..output.destination import refusal
from ..pipeline import EncodedConditions, Pipeline, StepEvent
from ..planning.plan import Plan
from ..provenance.signature import SIDECAR_ENDING
from .key import setting_of, texts_of
from .order import in_order
from .receipts import failures, keys_done, of_the_first, receipt_of
from .store import CLAIMS, FolderStore, Store
from .task import FAILED, RECEIPTS, SETTING, VIDEOS, Batch, Task, failure_name, receipt_name

WAIT_S = 0.2  # between two looks at what others are making, for each of them: many workers must not busy the share
LONGEST_WAIT_S = 5.0
RENEWALS = 4  # of a claim in each lease

# What no other video would fare better with: it ends the worker, and counts as no attempt.
OF_THE_MACHINE = (BundleError, BackendUnavailableError, EngineError, GraphError, CancelledError)

Watch = Callable[[], object]


class ClaimLostError(Exception):
    """Another worker has taken over, because this one did not renew its claim in time."""


def open_store(batch: Batch) -> FolderStore:
    """The folder of a batch.

    Raises:
        OutputError: it cannot be written.
        RequestError: it holds videos of another bundle, backend, precision, version or kind, and none of these twice.
    """
    store = FolderStore(batch.out, batch.options.lease, (VIDEOS, RECEIPTS, FAILED))
    store.put_once(SETTING, (json.dumps(batch.setting, indent=1) + "\n").encode())
    theirs = json.loads(store.read(SETTING) or b"{}")
    if unlike := _unlike(batch.setting, theirs):
        raise RequestError(
            f"{batch.out} was begun with {unlike}. All videos of a batch must be made with the same settings; use "
            "those, or name another folder"
        )
    return store


def tidy(store: Store) -> None:
    """Removes what workers left that ended: unfinished files, and claims whose videos got their receipts."""
    for key in store.names(CLAIMS) & keys_done(store):
        store.forget(key)
    store.sweep()


def work(batch: Batch, watch: Watch = lambda: None, *, verify: bool = True) -> None:
    """Opens the bundle and works until each video of the batch is finished or left alone, by this worker or others.

    Args:
        batch: all that there is to do.
        watch: called often, between two videos and while one is made; what it raises ends the work.
        verify: whether to check the hashes of the bundle, which whoever started this worker may have done.

    Raises:
        RequestError: this machine would make other videos than the batch asks for.
        OutputError: the folder takes no more.
        MutoscopeError: the bundle cannot run here.
    """
    with Pipeline(Bundle.open(batch.bundle, verify=verify), batch.runtime) as pipeline:
        Worker(batch, pipeline, watch).run()


class Worker:
    """One worker with a pipeline of its own.

    Args:
        batch: all that there is to do.
        pipeline: makes the videos.
        watch: as `work` has it.
    """

    def __init__(self, batch: Batch, pipeline: Pipeline, watch: Watch = lambda: None) -> None:
        self._batch, self._pipeline, self._watch = batch, pipeline, watch
        self._encoded = EncodedConditions()
        self._last: Task | None = None
        self._tasks: dict[str, Task] = {}
        for task in batch.tasks:
            self._tasks.setdefault(task.key, task)  # of one key, the first in the file

    def run(self) -> None:
        """Works until each video is finished or left alone; as `work` raises."""
        self._refuse_other_setting()
        with open_store(self._batch) as store:
            try:
                self._work(store)
            except BrokenPipeError:  # of the watch: whoever read standard output has gone
                raise
            except OSError as error:
                raise refusal(error, store.root) from error

    def _work(self, store: FolderStore) -> None:
        store.sweep()
        while waiting := self._waiting(store):
            if (task := self._claimed(store, waiting)) is not None:
                with suppress(ClaimLostError):  # whoever has it makes it
                    self._make(store, task)
                self._last = task
            self._watch()
        tidy(store)

    def _refuse_other_setting(self) -> None:
        batch = self._batch
        if not batch.tasks:
            return
        plan = self._pipeline.plan(batch.tasks[0].request)
        here = setting_of(plan, batch.options.ending, batch.output)
        if unlike := _unlike(here, batch.setting):
            raise RequestError(
                f"the batch must be made with {unlike}, as this worker would. Name the backend and the precision, "
                "and install the same versions on all machines"
            )

    def _waiting(self, store: FolderStore) -> list[Task]:
        done, failed = keys_done(store), failures(store)
        attempts = self._batch.options.attempts
        return [task for key, task in self._tasks.items() if key not in done and failed.get(key, 0) < attempts]

    def _claimed(self, store: FolderStore, waiting: list[Task]) -> Task | None:
        """The next video, which is this worker's own now; `None` where there was none to have at the moment."""
        claims = store.names(CLAIMS)
        order = in_order(waiting, [self._tasks[key] for key in claims if key in self._tasks], self._last)
        for task in order:
            if task.key not in claims and store.claim(task.key):
                if store.read(receipt_name(task.key)) is None:
                    return task
                store.release(task.key)  # finished by another since we looked
        evicted = False
        for task in order:
            if task.key in claims and (owner := store.evict(task.key)):
                attempt = failures(store).get(task.key, 0) + 1
                cause = f"the worker ended, or did not renew its claim for {self._batch.options.lease} s"
                self._record(store, task, attempt, "WorkerLost", f"{cause}: {owner}")
                evicted = True
        if not evicted:
            time.sleep(min(LONGEST_WAIT_S, WAIT_S * len(order)))
        return None

    def _make(self, store: FolderStore, task: Task) -> None:
        attempt = failures(store).get(task.key, 0) + 1
        path = store.workspace(f"{task.key}{self._batch.options.ending}")
        try:
            with _Claim(store, task, self._watch) as claim:
                made = make_file(self._pipeline, task.request, path, self._batch.output, claim, self._encoded)
                claim.check()
                receipt = receipt_of(made, task, self._batch, self._pipeline.settled, attempt)
                if not store.put_once(receipt["file"], path):
                    receipt = of_the_first(receipt, store)
                if made.file.sidecar is not None and receipt["sha256"] == made.file.sha256:  # it signs these bytes
                    store.put_once(receipt["sidecar"], made.file.sidecar)
                store.put_once(receipt_name(task.key), (json.dumps(receipt) + "\n").encode())
        except (ClaimLostError, OSError):
            raise
        except MutoscopeError as error:
            if not store.renew(task.key):  # a sweep took what it was writing, as it seemed to have ended
                raise ClaimLostError from error
            if isinstance(error, OF_THE_MACHINE) or (isinstance(error, OutputError) and _of_the_system(error)):
                raise
            self._record(store, task, attempt, type(error).__name__, str(error))
        except Exception as error:  # a fault of ours or of a library's costs one video, and is told
            self._record(store, task, attempt, type(error).__name__, str(error))
        finally:
            with suppress(OSError):
                for mine in (path, path.with_name(path.name + SIDECAR_ENDING)):
                    mine.unlink(missing_ok=True)
                store.release(task.key)

    def _record(self, store: FolderStore, task: Task, attempt: int, kind: str, cause: str) -> None:
        facts = {"key": task.key, "id": task.id, "attempt": attempt, "error": kind, "cause": cause}
        content = json.dumps(facts | {"host": platform.node()}) + "\n"
        store.put_once(failure_name(task.key, attempt), content.encode())


class _Claim(Observer):
    """Renews a claim in a thread, because one step, or loading a model, may take longer than a lease; and ends the
    work at the next step or chunk of frames where the claim was lost, or the watch says so."""

    def __init__(self, store: FolderStore, task: Task, watch: Watch) -> None:
        self._store, self._task, self._watch = store, task, watch
        self._lost = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="renew the claim", daemon=True)

    def __enter__(self) -> _Claim:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def on_plan(self, plan: Plan) -> None:
        """
        Raises:
            RequestError: it would be another video than that of its key.
        """
        if texts_of(plan) != self._task.texts:
            raise RequestError("a file that the job names was changed since the jobs were read; start the batch again")

    def on_stage(self, stage: str) -> None:
        self.check()

    def on_step(self, event: StepEvent) -> None:
        self.check()

    def on_frames(self, done: int, total: int) -> None:
        self.check()

    def check(self) -> None:
        """
        Raises:
            ClaimLostError: another worker has taken over.
        """
        if self._lost:
            raise ClaimLostError
        self._watch()

    def _renew(self) -> None:
        while not self._over.wait(self._store.lease_s / RENEWALS):
            with suppress(OSError):  # a share that is away for a moment
                self._lost = not self._store.renew(self._task.key)


def _unlike(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What of their setting is not ours, for a person."""
    names = [name for name in ours if ours[name] != theirs.get(name)]
    return ", ".join(f"{name} {theirs.get(name)!r}, not {ours[name]!r}" for name in names)


def _of_the_system(error: OutputError) -> bool:
    """Whether the system refused to write, as where a disk is full, rather than a format the video."""
    return isinstance(error.__cause__, OSError)
