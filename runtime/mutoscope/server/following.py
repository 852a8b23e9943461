"""What workers in other processes tell goes to the clients of this one, and what ended ones left is settled."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

from ..codec import from_plain
from ..errors import RequestError
from ..terminal import note
from .jobs import STATE
from .live import Live
from .news import PROGRESS, News, Told
from .outcomes import Outcomes
from .worker import LOOK_S, POLL_S, Audience


class Follower:
    """Tells what is new, in a thread of its own.

    Args:
        table: the file of the `JobTable`.
        outcomes: of workers that have ended.
        audience: is told as by a worker in this process.
    """

    def __init__(self, table: Path, outcomes: Outcomes, audience: Audience) -> None:
        self._news = News(table)
        self._outcomes, self._audience = outcomes, audience
        self._number, self._version, self._looked = 0, -1, 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mutoscope-follower", daemon=True)

    def start(self) -> None:
        """Begins with how far the videos are that run now."""
        self._news.forget_changes()
        self._thread.start()

    def end(self) -> None:
        """Returns once it tells nothing any more."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._news.close()

    def _run(self) -> None:
        while not self._ended.wait(POLL_S):
            try:
                self._look()
            except Exception as error:  # the disk of the queue is full, or gone
                note(f"nothing is heard of other workers for a moment: {type(error).__name__}")
                self._ended.wait(LOOK_S)

    def _look(self) -> None:
        version = self._news.version
        if version != self._version:
            for told in self._news.since(self._number):
                self._tell(told)
                self._number = told.number
            self._version = version
        if time.monotonic() - self._looked >= LOOK_S:
            for id in self._outcomes.release_ended():
                self._audience.changed(id)
            self._looked = time.monotonic()

    def _tell(self, told: Told) -> None:
        if told.kind == STATE:
            self._audience.changed(told.video)
        elif told.kind == PROGRESS:
            with suppress(RequestError):  # told by a worker of another version; the news after it must be heard
                self._audience.progress(from_plain(Live, told.data))
        else:
            self._audience.preview(told.video, told.data)
