"""Several workers on one machine, each a process, which share its threads and memory. Knows processes and the loop."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.context import SpawnProcess
from typing import Any

from ..errors import MutoscopeError
from ..request import RuntimeOptions
from .store import Store
from .task import FAILED, RECEIPTS, Batch
from .worker import Watch, work

LOOK_EVERY_S = 0.2
ENDS_WITHIN_S = 30.0  # of a worker that was asked to end: the rest of a step
# How many threads NumPy's libraries take for a product, which the watermark has; they read it when they are loaded.
THREADS_OF_NUMPY = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class WorkersLostError(MutoscopeError):
    """The workers ended one after the other, and made nothing."""

    exit_code = 1


def shared(settled: RuntimeOptions, workers: int) -> RuntimeOptions:
    """The options of each of so many workers.

    Args:
        settled: of all together, with nothing left open.
        workers: how many there are.
    """
    threads, memory = settled.threads or 1, settled.memory_limit or 1
    return replace(settled, threads=max(1, threads // workers), memory_limit=max(1, memory // workers))


class LostWorkers:
    """Counts workers that ended unexpectedly since a video was last finished or failed.

    Args:
        batch: whose workers.
        store: its folder.
    """

    def __init__(self, batch: Batch, store: Store) -> None:
        self._store = store
        self._most = batch.options.attempts + batch.options.workers
        self._count, self._before = 0, self._tried()

    def add(self, where: str) -> None:
        """One more.

        Args:
            where: what is known of its end, for a person.

        Raises:
            WorkersLostError: more were lost than a video has attempts, and no video was finished or failed meanwhile.
        """
        tried = self._tried()
        self._count, self._before = (self._count + 1 if tried == self._before else 1), tried
        if self._count > self._most:
            raise WorkersLostError(f"{self._count} workers ended unexpectedly; {where}")

    def _tried(self) -> int:
        return len(self._store.names(RECEIPTS)) + len(self._store.names(FAILED))


@dataclass
class _Process:
    process: SpawnProcess
    said: Any  # a Connection, which Windows calls a PipeConnection

    def error(self) -> MutoscopeError | None:
        """What ended it, if it could say so."""
        try:
            error: MutoscopeError = self.said.recv()
        except EOFError:
            return None
        return error


def run_workers(batch: Batch, store: Store, watch: Watch) -> None:
    """Works with as many processes as the batch has workers, and replaces those that are killed.

    Args:
        batch: with the options of one worker.
        store: its folder.
        watch: called often; what it raises ends all workers.

    Raises:
        MutoscopeError: that of the first worker that cannot go on; all others are ended.
        WorkersLostError: more were lost than a video has attempts, and no video was finished or failed meanwhile.
    """
    running = [start(batch) for _ in range(batch.options.workers)]
    lost = LostWorkers(batch, store)
    try:
        while running:
            time.sleep(LOOK_EVERY_S)
            watch()
            for each in [each for each in running if not each.process.is_alive()]:
                running.remove(each)
                if error := each.error():
                    raise error
                if each.process.exitcode == 0:
                    continue
                lost.add(f"the last with code {each.process.exitcode}")
                running.append(start(batch))
    finally:
        _end(running)


def start(batch: Batch) -> _Process:
    """One worker in a process of its own."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of libraries in a broken state
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=live, args=(batch, sending), name="mutoscope worker")
    with _threads_of_numpy(batch.runtime.threads):
        process.start()
    sending.close()
    return _Process(process, receiving)


@contextmanager
def _threads_of_numpy(threads: int | None) -> Iterator[None]:
    """NumPy in processes that are started meanwhile uses so many, unless the user's environment says how many."""
    unsaid = [name for name in THREADS_OF_NUMPY if name not in os.environ and threads is not None]
    os.environ.update(dict.fromkeys(unsaid, str(threads)))
    try:
        yield
    finally:
        for name in unsaid:
            del os.environ[name]


def _end(running: list[_Process]) -> None:
    for each in running:
        each.process.terminate()
    deadline = time.monotonic() + ENDS_WITHIN_S
    for each in running:
        each.process.join(max(0.0, deadline - time.monotonic()))
        if each.process.is_alive():
            each.process.kill()
            each.process.join()


def live(batch: Batch, said: Any) -> None:
    """The life of one of these processes. It also ends when the one that started it is gone."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    starter = multiprocessing.parent_process()

    def watch() -> None:
        if starter is not None and not starter.is_alive():
            raise KeyboardInterrupt

    try:
        work(batch, watch, verify=False)
    except MutoscopeError as error:
        said.send(error)
        said.close()
        sys.exit(error.exit_code)  # the starter tells it, not this process
    except KeyboardInterrupt:
        return
