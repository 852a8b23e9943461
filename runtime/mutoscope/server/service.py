"""Everything that can be done with videos, whoever asks: create, look, cancel, delete, make again. Knows no HTTP.

All methods may be called from any thread, and wait for the disk.
"""

from __future__ import annotations

import errno
import secrets
import shutil
import sqlite3
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

from ..codec import to_plain
from ..errors import MutoscopeError
from ..planning.plan import Plan
from ..policy import Policy
from ..request import FILES, LORAS, VideoRequest
from .contents import Content, content_of, decodes
from .events import EventLog
from .following import Follower
from .given_files import Files, as_fields, files_of, stated
from .intake import Accepted, Intake
from .jobs import CANCELLED, COMPLETED, FAILED, QUEUED, RUNNING, STATES, Job, JobTable
from .live import Live
from .named_loras import with_hashes
from .options import ServeOptions
from .outcomes import Outcomes
from .owners import Owners
from .reading import Asked, OwnVideo
from .refusals import NO_RETRY, RefusedError, bad_request, not_found
from .studio import TABLE, WORKERS, Studio
from .video_object import DAY_S, video_object
from .worker import Worker

_FULL = (errno.ENOSPC, errno.EDQUOT)
LONG_WAIT_S = 60  # clients are not to hold a connection or a call for longer than that


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a new video comes from, beside what was asked for."""

    idempotency_key: str | None = None
    remixed_from: str | None = None


class Service:
    """The videos of one data folder, which must exist. `start` begins to make them, `stop` ends it.

    It is the audience of its own worker, and of a `Follower`, which tells what workers in other processes do.
    """

    def __init__(self, studio: Studio, options: ServeOptions, policy: Policy | None = None) -> None:
        self.intake, self.options = Intake(studio, policy), options
        self.events = EventLog()
        data = studio.folder.parent
        self.table = JobTable(data / TABLE)
        self.made = 0
        self._counted = deque[str](maxlen=1000)  # the newest of them, as each may be told twice
        self.last_video_s: float | None = None
        owners = Owners(data / WORKERS)
        self._outcomes = Outcomes(studio, self.table, owners)
        self._open = ExitStack()
        self.worker = Worker(self._open.enter_context(owners.hold()), studio, self.table, self._outcomes, self)
        self._further: dict[str, Live] = {}  # what workers in other processes make
        self._follower = Follower(data / TABLE, self._outcomes, self)

    @property
    def studio(self) -> Studio:
        """What videos are made with, and where."""
        return self.intake.studio

    def start(self) -> None:
        """Puts right what a kill left behind, and starts the worker."""
        self._outcomes.release_ended()
        for id in self.table.deleted():
            self._outcomes.delete(id)
        held = {each.id for each in self.table.held()}
        for folder in self.studio.folder.iterdir():
            job = self.table.get(folder.name)
            gone = job is None or job.state in (FAILED, CANCELLED)
            if gone and folder.name not in held:
                shutil.rmtree(folder)
        for id in self.studio.given.ids():
            if self.table.get(id) is None and id not in held:
                self.studio.given.remove(id)
        self._follower.start()
        self.worker.start()

    def stop(self) -> None:
        """Ends the worker at its next step, and lets go of the data folder."""
        self.events.close()
        self._follower.end()
        self.worker.end()
        self._open.close()
        self.intake.close()
        self.table.close()

    def create(self, asked: Asked, origin: Origin = Origin()) -> Job:
        """A queued video.

        Raises:
            RefusedError: the request cannot be met, or not now.
        """
        fingerprint = None
        if origin.idempotency_key is not None:
            fingerprint = asked.fingerprint
            if before := self.table.get_keyed(origin.idempotency_key):  # whatever became of what it names
                return _repeated(before, fingerprint)
        with self.intake.turn(asked.files):
            return self._add(self.intake.accepted(self._with_contents(asked)), origin, fingerprint)

    def plan(self, asked: Asked) -> Plan:
        """What would be done; nothing is queued.

        Raises:
            RefusedError: the request cannot be met.
        """
        with self.intake.turn(asked.files):
            return self.intake.accepted(self._with_contents(asked)).plan

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
        if self.table.cancel(id, time.time()):  # a worker sees it at its next step
            self.changed(id)
        return self.get(id)

    def delete(self, id: str) -> None:
        """Removes a video with everything that is kept of it; stops it first, if it runs.

        Raises:
            RefusedError: there is no such video.
        """
        before = self.table.mark_deleted(id)
        if before is None:
            raise not_found("video", id)
        if before.owner is None:  # its worker does it otherwise, at the next step
            self._outcomes.delete(id)
        self.changed(id)

    def content(self, id: str, variant: str) -> Content:
        """A file of a video.

        Raises:
            RefusedError: there is no such video or variant, or it is not finished.
        """
        try:
            with self.intake.turn(FILES if decodes(variant) else ()):
                return content_of(self.get(id), variant, self.studio)
        except OSError as error:
            self.get(id)  # it may have been deleted meanwhile
            if isinstance(error, FileNotFoundError):
                words = f"the {variant} of this video is not in the data folder of the server any more"
                raise RefusedError(HTTPStatus.NOT_FOUND, "not_found", words, "variant") from error
            if error.errno in _FULL:  # a small picture was to be written
                raise _disk_full() from error
            raise

    def recipe(self, id: str) -> dict[str, Any]:
        """The command line and the Python program that make the same video, and the request.

        Raises:
            RefusedError: there is no such video, or a file that it follows is not there any more.
        """
        return self.intake.recipe(self.get(id))

    def video(self, job: Job) -> dict[str, Any]:
        """A job as clients see it."""
        return self.videos([job])[0]

    def videos(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Some jobs as clients see them."""
        waiting = [job.id for job in jobs if job.state == QUEUED]
        ahead = self.table.ahead_of(waiting) if waiting else {}
        return [video_object(job, self._live(job), ahead.get(job.id), self.options.keep) for job in jobs]

    def changed(self, id: str) -> None:
        """Tells everybody who listens what state a video is in now."""
        job = self.table.get(id)
        if job is None or job.state != RUNNING:
            self._further.pop(id, None)
        if job is None:
            self.events.publish(id, "deleted", {"id": id})
            return
        if job.state == COMPLETED and job.finished_at is not None and id not in self._counted:
            self._counted.append(id)
            self.made += 1
            self.last_video_s = job.finished_at - (job.started_at or job.finished_at)
        self.events.publish(id, "video", self.video(job))

    def progress(self, live: Live) -> None:
        """Tells everybody how far a video is."""
        if live is not self.worker.live:
            self._further[live.id] = live
        self.events.publish(live.id, "progress", {"id": live.id, **live.to_dict()})

    def preview(self, id: str, picture: dict[str, Any]) -> None:
        """Shows everybody what is made."""
        self.events.publish(id, "preview", {"id": id, **picture})

    def queue(self) -> dict[str, Any]:
        """What waits and runs, as a whole."""
        counts = self.table.counts()
        unfinished = counts[QUEUED] + counts[RUNNING]
        running = self.table.page(after=None, limit=counts[RUNNING], newest_first=False, states=(RUNNING,))
        return {
            "counts": counts,
            "limit": self.options.queue,
            "running": [job.id for job in running],
            "seconds_left": self._wait_s(unfinished, counts[RUNNING]) if unfinished else 0,
        }

    def delete_old(self) -> None:
        """Deletes what ended more than `keep` days ago."""
        if self.options.keep is not None:
            for id in self.table.finished_before(time.time() - self.options.keep * DAY_S):
                self.delete(id)

    def _wait_s(self, waiting: int, running: int) -> int:
        """About how long it takes to make some videos, from how long the last one took, and how many are made now."""
        return max(1, round(waiting * (self.last_video_s or 5.0) / max(1, running)))

    def lives(self) -> list[Live]:
        """How far the videos are that run, in any process."""
        own = self.worker.live
        return [*self._further.values(), *([own] if own else [])]

    def _live(self, job: Job) -> Live | None:
        if job.state != RUNNING:
            return None
        own = self.worker.live
        return own if own is not None and own.id == job.id else self._further.get(job.id)

    def _like(self, id: str, **changed: Any) -> Job:
        job = self.get(id)
        with self.intake.turn(job.request):
            return self._add(self.intake.like(job, **changed), Origin(remixed_from=id))

    def _with_contents(self, asked: Asked) -> Asked:
        """What was asked for, with the files of this server's videos in place of their ids. To be called in a turn.

        Raises:
            RefusedError: there is no such video, or it is not finished.
        """
        read: dict[str, Any] = dict(asked.files)
        for name, each in asked.files.items():
            if isinstance(each, OwnVideo):
                found = self.content(each.id, "video")
                try:
                    read[name] = found.path.read_bytes()
                except FileNotFoundError:
                    raise not_found("video", each.id) from None
        return replace(asked, files=read)

    def _add(self, accepted: Accepted, origin: Origin, fingerprint: str | None = None) -> Job:
        if self.studio.disk_is_full:
            raise _disk_full()
        named, request, plan = self.studio.loras.named, accepted.request, accepted.plan
        files = files_of(request)
        given: dict[str, Any] = {**as_fields(files), **{name: getattr(request, name) for name in LORAS}}
        geometry = plan.geometry
        new = Job(
            id=f"video_{secrets.token_hex(16)}",
            model=accepted.model,
            request=with_hashes(to_plain(stated(named(_said(plan, given)))), plan),
            num_frames=plan.header.num_frames,
            height=geometry.height,
            width=geometry.width,
            fps=str(geometry.fps),
            created_at=time.time(),
            remixed_from=origin.remixed_from,
            idempotency_key=origin.idempotency_key,
            fingerprint=fingerprint,
        )
        job = self._stored(new, files)
        if job is None:
            raise self._queue_full()
        if job.id != new.id:
            return _repeated(job, fingerprint)
        self.changed(job.id)
        self.worker.wake()
        return job

    def _stored(self, new: Job, files: Files) -> Job | None:
        """As `JobTable.add` has it. The files are on the disk before the row, and gone where it is not added."""
        job = None
        try:
            self.studio.given.keep(new.id, files)
            if files and self.studio.disk_is_full:
                raise _disk_full()
            job = self.table.add(new, self.options.queue)
        except (OSError, sqlite3.OperationalError) as error:
            if getattr(error, "sqlite_errorname", None) == "SQLITE_FULL" or getattr(error, "errno", None) in _FULL:
                raise _disk_full() from error
            raise
        finally:
            if job is None or job.id != new.id:
                self.studio.given.remove(new.id)
        return job

    def _queue_full(self) -> RefusedError:
        wait_s = self._wait_s(1, self.table.counts()[RUNNING])
        headers = {"retry-after": str(wait_s)} | (NO_RETRY if wait_s > LONG_WAIT_S else {})
        message = f"{self.options.queue} videos wait or run already, and no more are allowed; try again in {wait_s} s"
        return RefusedError(HTTPStatus.TOO_MANY_REQUESTS, "queue_full", message, headers=headers)


def _repeated(before: Job, fingerprint: str | None) -> Job:
    """The video of a request that was sent again with its key.

    Raises:
        RefusedError: the request is another.
    """
    if before.fingerprint != fingerprint:
        message = "this Idempotency-Key was used for another request; take a new key"
        raise RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, "idempotency_key_reused", message)
    return before


def _said(plan: Plan, given: Any) -> VideoRequest:
    """
    Raises:
        RefusedError: a LoRA was replaced since the plan was made.
    """
    try:
        return plan.request_of(**given)
    except MutoscopeError as error:
        raise bad_request(error) from error


def _disk_full() -> RefusedError:
    message = "the disk of the server is almost full; delete videos, or free space on it"
    return RefusedError(HTTPStatus.INSUFFICIENT_STORAGE, "disk_full", message, headers=NO_RETRY)
