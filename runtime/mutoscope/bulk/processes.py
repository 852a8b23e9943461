"""Several workers on one machine, each a process, which share its threads and memory. Knows processes and the loop."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
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
    most_lost, lost, before = batch.options.attempts + len(running), 0, _tried(store)
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
                tried = _tried(store)
                lost, before = (lost + 1 if tried == before else 1), tried
                if lost > most_lost:
                    raise WorkersLostError(
                        f"{lost} workers ended unexpectedly; the last with code {each.process.exitcode}"
                    )
                running.append(start(batch))
    finally:
        _end(running)


def _tried(store: Store) -> int:
    return len(store.names(RECEIPTS)) + len(store.names(FAILED))


def start(batch: Batch) -> _Process:
    """One worker in a process of its own."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of libraries in a broken state
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=live, args=(batch, sending), name="mutoscope worker")
    process.start()
    sending.close()
    return _Process(process, receiving)


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
