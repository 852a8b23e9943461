"""The thread that makes the videos, one after the other, and tells how far the one is that it makes now.

Knows the queue, the pipeline and files. Knows no HTTP. Any number of processes may have one, on the same data folder.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from mutoscope_engines.names import no_such
from mutoscope_engines.system.portable_files import sync

from ..errors import CancelledError, MutoscopeError, OutOfMemoryError, OutputError, RequestError
from ..making import MadeVideo, Observer, make_file
from ..pipeline import Pipeline, StepEvent
from ..planning.plan import Plan
from ..terminal import note
from .jobs import Job, JobTable
from .live import Live
from .named_loras import refuse_other_loras, without_hashes
from .outcomes import Outcomes
from .pictures import preview
from .refusals import job_error
from .studio import Studio

FILE_NAME = "video.mp4"
LOOK_S = 1.0  # between two looks at what waits, and at who has ended, where nobody says that something is new
POLL_S = 0.05  # between two looks at whether another process has changed anything
PREVIEW_S = 0.5  # between two previews: fast steps would make more than anybody can see


class Audience(Protocol):
    """Who is told of what a worker does."""

    def changed(self, id: str) -> None:
        """The state of a video is another now."""

    def progress(self, live: Live) -> None:
        """A video is further than before."""

    def preview(self, id: str, picture: dict[str, Any]) -> None:
        """What a video looks like after a step: the step, and the picture as `pictures.preview` has it."""


class Worker:
    """Makes what waits in the table, in a thread of its own.

    Args:
        name: of `Owners.hold`, which must last until the worker has ended.
        audience: told of every change, in the thread of the worker.
        outdated: asked before a video is begun; the worker ends once it says that the studio is not the current one.
    """

    def __init__(
        self,
        name: str,
        studio: Studio,
        table: JobTable,
        outcomes: Outcomes,
        audience: Audience,
        outdated: Callable[[], bool] = lambda: False,
    ) -> None:
        self.live: Live | None = None
        self._name, self._studio, self._table, self._outcomes = name, studio, table, outcomes
        self._audience, self._outdated = audience, outdated
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
        """Something may wait now. What another process queued is noticed without it."""
        self._wake.set()

    def end(self, timeout_s: float | None = None) -> None:
        """Ends the thread at the next step. What it made goes back into the queue, and that is no attempt."""
        self._ending = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def refuse_unwanted(self, job: Job) -> None:
        """
        Raises:
            CancelledError: this video is not wanted any more, or not now.
        """
        if self._ending or not self._table.is_wanted(job):
            raise CancelledError("nobody wants this video any more, or the worker ends")

    def _run(self) -> None:
        while not self._ending:
            try:
                self._next()
            except Exception as error:  # the disk of the queue is full, or gone
                note(f"the queue stands still for a moment: {type(error).__name__}")
                self._wake.wait(LOOK_S)
                with suppress(Exception):
                    self._tell(self._outcomes.release(self._name))
        self._close()

    def _next(self) -> None:
        self._wake.clear()
        version = self._table.version
        self._tell(self._outcomes.release_ended())
        job = None if self._studio.disk_is_full else self._table.claim(self._name, time.time())
        if job is None:
            self._wait(version)
        elif self._outdated():
            self._outcomes.give_back(job, counts=False)
            self._ending = True
        else:
            self._make(job)

    def _wait(self, version: int) -> None:
        """Until something may wait: another process has changed the table, or somebody says so."""
        until = time.monotonic() + LOOK_S
        while not self._wake.wait(POLL_S) and self._table.version == version and time.monotonic() < until:
            continue

    def _tell(self, ids: Sequence[str]) -> None:
        for id in ids:
            self._audience.changed(id)

    def _make(self, job: Job) -> None:
        self.live = Live(job.id, num_frames=job.num_frames)
        self._audience.changed(job.id)
        self._audience.progress(self.live)
        try:
            made = self._made(job)
        except CancelledError:
            self._outcomes.give_back(job, counts=False)
        except OutOfMemoryError as error:
            self._close()  # what stays loaded may be what was too much
            self._outcomes.try_again(job, job_error(error))
        except OutputError as error:
            if self._studio.disk_is_full:
                self._outcomes.give_back(job, counts=False)
            else:
                self._outcomes.fail(job, job_error(error))
        except MutoscopeError as error:
            self._outcomes.fail(job, job_error(error))
        except Exception as error:  # a fault of ours, or of a library
            note(f"{job.id} ended with {type(error).__name__}")
            self._close()
            cause = {"code": "internal_error", "message": f"{type(error).__name__} in the server", "param": None}
            self._outcomes.try_again(job, cause)
        else:
            self._complete(job, made)
        finally:
            self.live = None
            self._audience.changed(job.id)

    def _made(self, job: Job) -> MadeVideo:
        if job.model not in self._studio.bundles:
            raise RequestError(no_such("model", job.model, list(self._studio.bundles)))
        self.refuse_unwanted(job)
        folder = self._studio.place(job.id)
        folder.mkdir(mode=0o700, exist_ok=True)
        request = self._studio.request_of(job)
        watch = _Watch(self, job, self._audience)
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
        self._outcomes.complete(job, receipt)

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

    def __init__(self, worker: Worker, job: Job, audience: Audience) -> None:
        assert worker.live is not None
        self._worker, self._live, self._job, self._audience = worker, worker.live, job, audience
        self._preview_at = 0.0

    def on_plan(self, plan: Plan) -> None:
        refuse_other_loras(plan, without_hashes(self._job.request)[1])
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
                self._audience.preview(live.id, {"step": live.step, **preview(frames)})

    def on_frames(self, done: int, total: int) -> None:
        self._live.frames = done
        self._told()

    def _told(self) -> None:
        self._worker.refuse_unwanted(self._job)
        self._audience.progress(self._live)
