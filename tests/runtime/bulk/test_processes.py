"""Workers as processes: they share threads and memory, are replaced when killed, and end together."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from mutoscope import OutputOptions, Pipeline, RequestError, RuntimeOptions
from mutoscope.bulk import processes as p
from mutoscope.bulk.jobs import read_jobs
from mutoscope.bulk.options import BatchOptions
from mutoscope.bulk.processes import WorkersLostError, run_workers, shared
from mutoscope.bulk.store import CLAIMS, MAKING, FolderStore
from mutoscope.bulk.task import Batch
from mutoscope.bulk.worker import open_store
from mutoscope.errors import MutoscopeError
from mutoscope.provenance.signature import is_available


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    """Six small clips of the built-in model, for two workers of one thread; none of them is ever given up."""
    jobs = tmp_path / "jobs.jsonl"
    size = {"height": 32, "width": 32, "num_frames": 1, "num_inference_steps": 1}
    jobs.write_text(json.dumps({"prompt": "a red circle", "seed": 1, "repeat": 6, **size}))
    options = BatchOptions(workers=2, ending=".npy", lease=60)
    runtime = RuntimeOptions(threads=1, backend="onnxruntime")
    with Pipeline.load(threads=1, backend="onnxruntime") as pipeline:
        checked = read_jobs(jobs, pipeline, options.ending, OutputOptions())
        return Batch(out=tmp_path / "out", tasks=checked.tasks, bundle=pipeline.bundle.root, setting=checked.setting,
                     runtime=runtime, options=options)  # fmt: skip


def test_workers_share_threads_and_memory():
    whole = RuntimeOptions(threads=5, memory_limit=9_000_000_000)
    each = shared(whole, 2)
    assert (each.threads, each.memory_limit) == (2, 4_500_000_000)
    assert shared(whole, 8).threads == 1


def owner_of(claim: Path) -> int | None:
    """The process that holds a claim, if it does so still."""
    try:
        return int(claim.read_text().split("-")[1])
    except FileNotFoundError:
        return None


def halted(process: int) -> None:
    running = psutil.Process(process)
    running.suspend()
    while running.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
        time.sleep(0.001)


def test_killed_workers_are_replaced_and_each_video_is_made_once(batch: Batch):
    killed: set[int] = set()

    def kill_owners() -> None:
        for claim in list((batch.out / CLAIMS).iterdir()):
            process = owner_of(claim)
            if process is None or len(killed) == 3 or process in killed:
                continue
            with suppress(psutil.NoSuchProcess):  # halted, it cannot finish between the look at its claim and its end
                halted(process)
                if owner_of(claim) == process and not (batch.out / "receipts" / f"{claim.name}.json").exists():
                    killed.add(process)
                    os.kill(process, signal.SIGKILL)
                else:
                    os.kill(process, signal.SIGCONT)

    with open_store(batch) as store:
        p_look, p.LOOK_EVERY_S = p.LOOK_EVERY_S, 0.01
        try:
            run_workers(batch, store, kill_owners)
        finally:
            p.LOOK_EVERY_S = p_look
    assert killed
    videos = {path.name for path in (batch.out / "videos").glob("*.npy")}
    assert len(videos) == len(os.listdir(batch.out / "receipts")) == 6
    signatures = {path.name for path in (batch.out / "videos").iterdir()} - videos
    assert signatures == ({f"{name}.c2pa" for name in videos} if is_available() else set())
    assert len(os.listdir(batch.out / "failed")) == len(killed)  # each had a claim
    assert not os.listdir(batch.out / MAKING) + os.listdir(batch.out / CLAIMS)


class Pretended:
    """A process that has ended, or lives until it is asked to end."""

    def __init__(self, code: int | None, error: MutoscopeError | None = None, *, heeds: bool = True) -> None:
        self.exitcode, self._error, self._heeds = code, error, heeds
        self.process = self
        self.ended_by: list[str] = []

    def is_alive(self) -> bool:
        return self.exitcode is None

    def error(self) -> MutoscopeError | None:
        return self._error

    def terminate(self) -> None:
        self.ended_by.append("terminate")
        if self._heeds and self.exitcode is None:
            self.exitcode = 0

    def kill(self) -> None:
        self.ended_by.append("kill")
        self.exitcode = -9

    def join(self, timeout: float = 0) -> None:
        pass


def pretend(monkeypatch: pytest.MonkeyPatch, *processes: Pretended) -> None:
    waiting = iter(processes)
    monkeypatch.setattr(p, "start", lambda batch: next(waiting, Pretended(-9)))
    monkeypatch.setattr(p, "LOOK_EVERY_S", 0)


def test_the_error_of_a_worker_ends_the_others(batch: Batch, monkeypatch):
    stubborn = Pretended(None, heeds=False)
    pretend(monkeypatch, Pretended(2, RequestError("another version")), stubborn)
    with (
        FolderStore(batch.out, 60, ("receipts", "failed")) as store,
        pytest.raises(RequestError, match="another version"),
    ):
        run_workers(batch, store, lambda: None)
    assert stubborn.ended_by == ["terminate", "kill"]


def test_workers_that_end_again_and_again_without_a_video_are_given_up(batch: Batch, monkeypatch):
    pretend(monkeypatch)
    with FolderStore(batch.out, 60, ("receipts", "failed")) as store:
        with pytest.raises(WorkersLostError, match="6 workers ended unexpectedly; the last with code -9"):
            run_workers(batch, store, lambda: None)
        number = iter(range(100))

        def progress() -> None:  # a failed attempt each time, so it goes on until the last
            count = next(number)
            store.put_once(f"failed/k.{count}.json", b"{}")
            if count == 20:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_workers(batch, store, progress)


def multiply(batch: Batch, said: Any) -> None:
    """In the place of a worker: how many threads it has after a product that NumPy would share out."""
    np.ones((600, 600)) @ np.ones((600, 600))
    said.send(psutil.Process().num_threads())


def test_a_worker_multiplies_with_its_share_of_the_threads(batch: Batch, monkeypatch):
    monkeypatch.setattr(p, "live", multiply)
    for name in p.THREADS_OF_NUMPY:
        monkeypatch.delenv(name, raising=False)
    started = p.start(batch)
    assert started.said.recv() == batch.runtime.threads == 1
    started.process.join()
    assert not set(p.THREADS_OF_NUMPY) & set(os.environ)


class Starter:
    """Who started a worker."""

    def __init__(self, *, lives: bool) -> None:
        self.lives = lives

    def is_alive(self) -> bool:
        return self.lives


class Said(list):
    """The end of a pipe that a worker writes."""

    send = list.append

    def close(self) -> None:
        pass


@pytest.mark.parametrize("lives", [True, False])
def test_a_worker_ends_with_who_started_it(batch: Batch, monkeypatch, lives: bool):
    monkeypatch.setattr(p.multiprocessing, "parent_process", lambda: Starter(lives=lives))
    monkeypatch.setattr(p.signal, "signal", lambda *_: None)
    said, looked = Said(), []

    def work(batch: Batch, watch: Callable[[], None], *, verify: bool) -> None:
        watch()
        looked.append(True)

    monkeypatch.setattr(p, "work", work)
    p.live(batch, said)
    assert (looked, said) == ([True] if lives else [], [])


def test_a_worker_says_what_ended_it(batch: Batch, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise RequestError("another version")

    monkeypatch.setattr(p.signal, "signal", lambda *_: None)
    said = Said()
    monkeypatch.setattr(p, "work", refuse)
    with pytest.raises(SystemExit) as ended:
        p.live(batch, said)
    assert ended.value.code == 2 and str(said[0]) == "another version"


def test_a_real_worker_passes_its_error_on(batch: Batch):
    changed = Batch(out=batch.out, tasks=batch.tasks, bundle=batch.bundle, setting={**batch.setting, "mutoscope": "0"},
                    runtime=batch.runtime, options=batch.options)  # fmt: skip
    with (
        FolderStore(batch.out, 60, ("receipts", "failed")) as store,
        pytest.raises(RequestError, match="same versions"),
    ):
        run_workers(changed, store, lambda: None)
