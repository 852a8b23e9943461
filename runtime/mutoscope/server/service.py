"""Everything that can be done with videos, whoever asks: create, look, cancel, delete, make again. Knows no HTTP.

All methods may be called from any thread, and wait for the disk.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from mutoscope_engines.names import no_such

from ..builtin import bundle_path
from ..bundle.bundle import Bundle
from ..codec import to_plain
from ..errors import MutoscopeError
from ..pipeline import Pipeline
from ..planning.plan import Plan
from ..policy import Policy, ask
from ..request import VideoRequest
from .events import EventLog
from .jobs import COMPLETED, QUEUED, RUNNING, STATES, Job, JobTable
from .options import ServeOptions
from .pictures import write_spritesheet, write_thumbnail
from .reading import Asked
from .recipes import command_line, python_lines
from .refusals import NO_RETRY, RefusedError, bad_request, invalid_value, not_found
from .video_object import DAY_S, video_object
from .worker import FILE_NAME, Studio, Worker, tidy

VARIANTS = {
    "video": (FILE_NAME, "video/mp4"),
    "thumbnail": ("thumbnail.webp", "image/webp"),
    "spritesheet": ("spritesheet.jpg", "image/jpeg"),
}
LONG_WAIT_S = 60  # clients are not to hold a connection or a call for longer than that


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a new video comes from, beside what was asked for."""

    idempotency_key: str | None = None
    remixed_from: str | None = None


class Service:
    """The videos of one data folder, which must exist. `start` begins to make them, `stop` ends it."""

    def __init__(self, studio: Studio, options: ServeOptions, policy: Policy | None = None) -> None:
        self.studio, self.options = studio, options
        self.events = EventLog()
        self.table = JobTable(studio.folder.parent / "jobs.sqlite3")
        self.worker = Worker(studio, self.table, self.events, self.tell)
        self._policy = policy
        # They only plan, and never open a graph: the worker's own pipeline holds the memory.
        self._planners = {name: Pipeline(bundle, studio.options) for name, bundle in studio.bundles.items()}

    def start(self) -> None:
        """Puts right what a kill left behind, and starts the worker."""
        self.worker.recover()
        for id in self.table.deleted():
            tidy(self.studio, self.table, id)
        for folder in self.studio.folder.iterdir():
            job_now = self.table.get(folder.name)
            if job_now is None or job_now.state != COMPLETED:  # what was begun is made anew
                shutil.rmtree(folder)
        self.worker.start()

    def stop(self) -> None:
        """Ends the worker at its next step, and lets go of the data folder."""
        self.events.close()
        self.worker.end()
        for planner in self._planners.values():
            planner.close()
        self.table.close()

    def create(self, asked: Asked, origin: Origin = Origin()) -> Job:
        """A queued video.

        Raises:
            RefusedError: the request cannot be met, or not now.
        """
        model, bundle = self.model(asked.model)
        try:
            request = asked.request(bundle.manifest)
        except MutoscopeError as error:
            raise bad_request(error) from error
        return self._add(model, request, origin)

    def model(self, name: str | None) -> tuple[str, Bundle]:
        """A model by its name; the first one where there is no name.

        Raises:
            RefusedError: there is no such model.
        """
        bundles = self.studio.bundles
        name = next(iter(bundles)) if name is None else name
        if name not in bundles:
            message = no_such("model", name[:80], list(bundles))
            raise RefusedError(HTTPStatus.NOT_FOUND, "model_not_found", message, "model")
        return name, bundles[name]

    def plan(self, asked: Asked) -> Plan:
        """What would be done; nothing is queued.

        Raises:
            RefusedError: the request cannot be met.
        """
        model, bundle = self.model(asked.model)
        try:
            return self._planned(model, asked.request(bundle.manifest))
        except MutoscopeError as error:
            raise bad_request(error) from error

    def remix(self, id: str, prompt: str) -> Job:
        """The same request, seed included, with another prompt.

        Raises:
            RefusedError: there is no such video, or the request cannot be met.
        """
        return self._like(id, prompt=prompt)

    def again(self, id: str, seed: int | None) -> Job:
        """The same request with another seed; a random one where none is given.

        Raises:
            RefusedError: there is no such video, or no such seed.
        """
        return self._like(id, seed=seed)

    def get(self, id: str) -> Job:
        """
        Raises:
            RefusedError: there is no such video.
        """
        job = self.table.get(id)
        if job is None:
            raise not_found("video", id)
        return job

    def page(
        self, after: str | None, limit: int, *, newest_first: bool, states: Sequence[str] = STATES, skip: int = 0
    ) -> list[Job]:
        """Some of the videos, from the one after `after` on, without the first `skip` of these.

        Raises:
            RefusedError: there is no such video.
        """
        if after is not None:
            self.get(after)
        return self.table.page(after=after, limit=limit, newest_first=newest_first, states=states, skip=skip)

    def cancel(self, id: str) -> Job:
        """Stops a video that waits or runs; one that ended stays as it is.

        Raises:
            RefusedError: there is no such video.
        """
        if self.table.cancel(id, time.time()):
            self.worker.give_up(id)
            self.tell(id)
        return self.get(id)

    def delete(self, id: str) -> None:
        """Removes a video with everything that is kept of it; stops it first, if it runs.

        Raises:
            RefusedError: there is no such video.
        """
        before = self.table.mark_deleted(id)
        if before is None:
            raise not_found("video", id)
        self.worker.give_up(id)
        if before != RUNNING:  # the worker does it for what it runs
            tidy(self.studio, self.table, id)
        self.tell(id)

    def content(self, id: str, variant: str) -> tuple[Path, str, Job]:
        """A file of a finished video, its media type, and the job.

        Raises:
            RefusedError: there is no such video or variant, or it is not finished.
        """
        if variant not in VARIANTS:
            message = f"variant must be one of {', '.join(VARIANTS)}; got {variant[:40]!r}"
            raise invalid_value("variant", message)
        job = self.get(id)
        if job.state != COMPLETED:
            message = f"this video has no content; its state is {job.state}"
            raise RefusedError(HTTPStatus.CONFLICT, "video_not_ready", message, "video_id", NO_RETRY)
        name, media_type = VARIANTS[variant]
        folder = self.studio.place(id)
        try:
            if variant != "video" and not (folder / name).exists():
                write = write_thumbnail if variant == "thumbnail" else write_spritesheet
                write(folder / FILE_NAME, job.num_frames, folder / name)
        except OSError:
            self.get(id)  # it may have been deleted meanwhile
            raise
        return folder / name, media_type, job

    def recipe(self, id: str) -> dict[str, Any]:
        """The command line and the Python program that make the same video, and the request.

        Raises:
            RefusedError: there is no such video.
        """
        job = self.get(id)
        bundle = self.studio.bundles.get(job.model)
        request = VideoRequest.from_dict(job.request)
        if bundle is not None:
            request = self._shortest(job.model, request)
        root = None if bundle is None or bundle.root == bundle_path() else str(bundle.root)
        said = (request, root, self.studio.options, self.studio.output)
        return {"request": job.request, "command": command_line(*said), "python": python_lines(*said)}

    def video(self, job: Job) -> dict[str, Any]:
        """A job as clients see it."""
        live = self.worker.live
        ahead = self.table.ahead_of(job) if job.state == QUEUED else None
        return video_object(job, live if live is not None and live.id == job.id else None, ahead, self.options.keep)

    def tell(self, id: str) -> None:
        """Tells everybody who listens what state a video is in now."""
        job = self.table.get(id)
        if job is None:
            self.events.publish(id, "deleted", {"id": id})
        else:
            self.events.publish(id, "video", self.video(job))

    def delete_old(self) -> None:
        """Deletes what ended more than `keep` days ago."""
        if self.options.keep is not None:
            for id in self.table.finished_before(time.time() - self.options.keep * DAY_S):
                self.delete(id)

    def wait_s(self, waiting: int) -> int:
        """About how long it takes to make some videos, from how long the last one took."""
        return max(1, round(waiting * (self.worker.last_video_s or 5.0)))

    def _like(self, id: str, **changed: Any) -> Job:
        job = self.get(id)
        request = replace(VideoRequest.from_dict(job.request), **changed)
        return self._add(job.model, request, Origin(remixed_from=id))

    def _shortest(self, model: str, request: VideoRequest) -> VideoRequest:
        """The request that says only what the bundle would not do unasked."""
        said = VideoRequest(prompt=request.prompt, seed=request.seed)
        while True:
            planned = self._planners[model].plan(said).to_request()
            names = [each.name for each in fields(VideoRequest)]
            missing = {
                each: getattr(request, each) for each in names if getattr(planned, each) != getattr(request, each)
            }
            if not missing or all(getattr(said, name) == value for name, value in missing.items()):
                return said
            said = replace(said, **missing)

    def _planned(self, model: str, request: VideoRequest) -> Plan:
        ask(self._policy, request)
        return self._planners[model].plan(request)

    def _add(self, model: str, request: VideoRequest, origin: Origin) -> Job:
        try:
            plan = self._planned(model, request)
        except MutoscopeError as error:
            raise bad_request(error) from error
        if self.studio.disk_is_full:
            raise _disk_full()
        stated = json.dumps([model, to_plain(request.to_dict()), origin.remixed_from], sort_keys=True)
        fingerprint = hashlib.sha256(stated.encode()).hexdigest()
        geometry = plan.geometry
        new = Job(
            id=f"video_{secrets.token_hex(16)}",
            model=model,
            request=plan.to_request().to_dict(),
            num_frames=geometry.num_frames,
            height=geometry.height,
            width=geometry.width,
            fps=str(geometry.fps),
            created_at=time.time(),
            remixed_from=origin.remixed_from,
            idempotency_key=origin.idempotency_key,
            fingerprint=fingerprint,
        )
        try:
            job = self.table.add(new, self.options.queue)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname == "SQLITE_FULL":
                raise _disk_full() from error
            raise
        if job is None:
            raise self._queue_full()
        if job.id != new.id and job.fingerprint != fingerprint:
            message = "this Idempotency-Key was used for another request; take a new key"
            raise RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, "idempotency_key_reused", message)
        if job.id == new.id:
            self.tell(job.id)
            self.worker.wake()
        return job

    def _queue_full(self) -> RefusedError:
        wait_s = self.wait_s(1)
        headers = {"retry-after": str(wait_s)} | (NO_RETRY if wait_s > LONG_WAIT_S else {})
        message = f"{self.options.queue} videos wait or run already, and no more are allowed; try again in {wait_s} s"
        return RefusedError(HTTPStatus.TOO_MANY_REQUESTS, "queue_full", message, headers=headers)


def _disk_full() -> RefusedError:
    message = "the disk of the server is almost full; delete videos, or free space on it"
    return RefusedError(HTTPStatus.INSUFFICIENT_STORAGE, "disk_full", message, headers=NO_RETRY)
