"""The thread that makes the videos, one after the other, and what is known of the one that it makes now.

Knows the queue, the pipeline and files. Knows no HTTP.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutoscope_engines.system.portable_files import sync

from ..bundle.bundle import Bundle
from ..errors import CancelledError, MutoscopeError, OutOfMemoryError, OutputError
from ..making import MadeVideo, Observer, make_file
from ..pipeline import Pipeline, StepEvent
from ..planning.plan import Plan
from ..request import OutputOptions, RuntimeOptions, VideoRequest
from ..terminal import note
from .events import EventLog
from .jobs import CANCELLED, FAILED, Job, JobTable
from .pictures import preview
from .refusals import job_error

FILE_NAME = "video.mp4"
IDLE_S = 5.0  # between two looks at what waits, where nobody says that something does
PREVIEW_S = 0.5  # between two previews: fast steps would make more than anybody can see


@dataclass
class Live:
    """How far the running video is. Written by the worker alone."""

    id: str
    started: float = field(default_factory=time.monotonic)
    stage: str = "loading"
    step: int = 0
    steps: int = 0
    frames: int = 0
    num_frames: int = 0
    first_step_at: float | None = None

    @property
    def progress(self) -> int:
        """Percent: nine tenths for the steps, the rest for the frames; 100 is for a finished file alone."""
        steps = 90 * self.step // self.steps if self.steps else 0
        frames = 10 * self.frames // self.num_frames if self.num_frames else 0
        return min(99, steps + frames)

    @property
    def step_s(self) -> float | None:
        """Seconds that a step takes, once two are done."""
        if self.first_step_at is None or self.step < 2 or self.stage != "denoise":
            return None
        return (self.now - self.first_step_at) / (self.step - 1)

    @property
    def now(self) -> float:
        """Seconds, from any start."""
        return time.monotonic()

    def to_dict(self) -> dict[str, Any]:
        """For clients."""
        step_s = self.step_s
        return {
            "progress": self.progress,
            "stage": self.stage,
            "step": self.step,
            "steps": self.steps,
            "frames_written": self.frames,
            "elapsed_seconds": round(self.now - self.started, 1),
            "seconds_left": None if step_s is None else round(step_s * (self.steps - self.step), 1),
        }


@dataclass(frozen=True, kw_only=True)
class Studio:
    """What videos are made with, and where."""

    bundles: Mapping[str, Bundle]
    options: RuntimeOptions
    output: OutputOptions
    folder: Path  # one folder in it for each video
    attempts: int
    free_disk: int

    def place(self, id: str) -> Path:
        """The folder of one video."""
        return self.folder / id

    @property
    def disk_is_full(self) -> bool:
        """Whether less is free than is to be left."""
        return shutil.disk_usage(self.folder).free < self.free_disk


class Worker:
    """Makes what waits in the table, in a thread of its own.

    Args:
        changed: told each time that a video's state changed, with its id.
    """

    def __init__(self, studio: Studio, table: JobTable, events: EventLog, changed: Callable[[str], object]) -> None:
        self.live: Live | None = None
        self.made = 0
        self.last_video_s: float | None = None
        self._studio, self._table, self._events, self._changed = studio, table, events, changed
        self._unwanted: set[str] = set()
        self._ending = False
        self._wake = threading.Event()
        self._model: str | None = None
        self._pipeline: Pipeline | None = None
        self._thread = threading.Thread(target=self._run, name="mutoscope-worker", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether videos are made, now or as soon as there are some."""
        return self._thread.is_alive() and not self._ending

    def start(self) -> None:
        """Begins with what waits."""
        self._thread.start()

    def wake(self) -> None:
        """Something may wait now."""
        self._wake.set()

    def give_up(self, id: str) -> None:
        """Ends a running video at its next step, or chunk of frames. Its row says already that nobody wants it."""
        self._unwanted.add(id)

    def end(self, timeout_s: float | None = None) -> None:
        """Ends the thread at the next step. What it made goes back into the queue, and that is no attempt."""
        self._ending = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def refuse_unwanted(self, id: str) -> None:
        """
        Raises:
            CancelledError: this video is not wanted any more, or not now.
        """
        if self._ending or id in self._unwanted:
            raise CancelledError("nobody wants this video any more, or the server ends")

    def recover(self) -> None:
        """Queues again what was running, in this process or one that was killed, or counts it as failed."""
        for job in self._table.orphans():
            message = (
                "the server ended while it made this video: it was killed, or the system ran out of memory; ask for a "
                "smaller height, width or num_frames"
            )
            self._try_again(job, {"code": "server_ended", "message": message, "param": None})

    def _run(self) -> None:
        while not self._ending:
            try:
                self._next()
            except Exception as error:  # the disk of the queue is full, or gone
                note(f"the queue stands still for a moment: {type(error).__name__}")
                self._wake.wait(IDLE_S)
                with suppress(Exception):
                    self.recover()
        self._close()

    def _next(self) -> None:
        self._wake.clear()
        self._unwanted.clear()  # nothing runs now
        job = None if self._studio.disk_is_full else self._table.claim(time.time())
        if job is None:
            self._wake.wait(IDLE_S)
        else:
            self._make(job)

    def _make(self, job: Job) -> None:
        self.live = Live(job.id, num_frames=job.num_frames)
        self._changed(job.id)
        try:
            made = self._made(job)
        except CancelledError:
            self._table.give_back(job.id, counts=False)  # changes nothing where it was cancelled or deleted
        except OutOfMemoryError as error:
            self._close()  # what stays loaded may be what was too much
            self._try_again(job, job_error(error))
        except OutputError as error:
            if self._studio.disk_is_full:
                self._table.give_back(job.id, counts=False)
            else:
                self._table.fail(job.id, job_error(error), time.time())
        except MutoscopeError as error:
            self._table.fail(job.id, job_error(error), time.time())
        except Exception as error:  # a fault of ours, or of a library
            note(f"{job.id} ended with {type(error).__name__}")
            self._close()
            cause = {"code": "internal_error", "message": f"{type(error).__name__} in the server", "param": None}
            self._try_again(job, cause)
        else:
            self._complete(job, made)
        finally:
            self.live = None
            tidy(self._studio, self._table, job.id)
            self._changed(job.id)

    def _made(self, job: Job) -> MadeVideo:
        self.refuse_unwanted(job.id)
        folder = self._studio.place(job.id)
        folder.mkdir(mode=0o700, exist_ok=True)
        request = VideoRequest.from_dict(job.request)
        watch = _Watch(self, self._events)
        return make_file(self._opened(job.model), request, folder / FILE_NAME, self._studio.output, watch)

    def _complete(self, job: Job, made: MadeVideo) -> None:
        folder = self._studio.place(job.id)
        for each in (folder, folder.parent):  # their names survive a power cut from now on
            sync(each)
        receipt = {
            **{name: value for name, value in made.file.to_dict().items() if name != "path"},
            "bundle_sha256": made.plan.bundle_sha256,
            "times_s": {stage: round(seconds, 4) for stage, seconds in made.times_s.items()},
        }
        now = time.time()
        if self._table.complete(job.id, receipt, now):
            self.made += 1
            self.last_video_s = now - (job.started_at or now)

    def _try_again(self, job: Job, error: dict[str, Any]) -> None:
        if job.attempts < self._studio.attempts:
            self._table.give_back(job.id, counts=True)
        else:
            error = {**error, "message": f"{error['message']} ({job.attempts} attempts)"}
            self._table.fail(job.id, error, time.time())

    def _opened(self, model: str) -> Pipeline:
        """One model at a time is loaded, whatever there are."""
        if self._pipeline is None or self._model != model:
            self._close()
            self._pipeline, self._model = Pipeline(self._studio.bundles[model], self._studio.options), model
        return self._pipeline

    def _close(self) -> None:
        if self._pipeline is not None:
            self._pipeline.close()
        self._pipeline = None


class _Watch(Observer):
    """Writes down how far the video is, tells it, and ends the work once nobody wants it."""

    def __init__(self, worker: Worker, events: EventLog) -> None:
        assert worker.live is not None
        self._worker, self._live, self._events = worker, worker.live, events
        self._preview_at = 0.0

    def on_plan(self, plan: Plan) -> None:
        self._told()

    def on_stage(self, stage: str) -> None:
        self._live.stage = stage
        self._told()

    def on_step(self, event: StepEvent) -> None:
        live = self._live
        live.step, live.steps = event.step, event.total
        live.first_step_at = live.first_step_at or live.now
        self._told()
        if live.now - self._preview_at >= PREVIEW_S or event.step == event.total:
            self._preview_at = live.now
            frames = event.preview()
            if frames is not None:
                self._events.publish(live.id, "preview", {"id": live.id, "step": live.step, **preview(frames)})

    def on_frames(self, done: int, total: int) -> None:
        self._live.frames = done
        self._told()

    def _told(self) -> None:
        self._worker.refuse_unwanted(self._live.id)
        self._events.publish(self._live.id, "progress", {"id": self._live.id, **self._live.to_dict()})


def tidy(studio: Studio, table: JobTable, id: str) -> None:
    """Removes the files of a video that will never be whole, and the row of a deleted one after them."""
    job = table.get(id)
    if job is None or job.state in (FAILED, CANCELLED):
        with suppress(FileNotFoundError):
            shutil.rmtree(studio.place(id))
    if job is None:
        table.forget(id)
