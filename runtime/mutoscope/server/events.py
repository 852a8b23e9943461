"""What happens to the videos, as a numbered log in memory that many clients read, each at its own pace.

Nobody has a queue of their own: a slow reader finds the log moved on and begins anew. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

MOST_EVENTS = 2000
KINDS = ("video", "progress", "preview", "deleted")


@dataclass(frozen=True)
class Event:
    """One thing that happened to one video. `kind` is one of `KINDS`."""

    number: int
    video: str
    kind: str
    data: dict[str, Any]


class EventLog:
    """The newest events. `publish` is for any thread, the rest for the event loop that `attach` was called in."""

    def __init__(self) -> None:
        self.epoch = secrets.token_hex(4)  # numbers of another process mean nothing here
        self._lock = threading.Lock()
        self._events: deque[Event] = deque()
        self._number = 0
        self._lost = 0  # up to this number events may be missing
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news: asyncio.Event | None = None
        self._closed = False

    def attach(self) -> None:
        """Wakes readers in the running event loop from now on."""
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()

    def close(self) -> None:
        """Ends every reader."""
        self._closed = True
        self._wake_from_anywhere()

    @property
    def closed(self) -> bool:
        """Whether nothing will come any more."""
        return self._closed

    def publish(self, video: str, kind: str, data: dict[str, Any]) -> None:
        """Tells everybody. A preview replaces the last one, and nothing else is kept of a deleted video."""
        outdated = {"preview": ("preview",), "progress": ("progress",), "deleted": KINDS}.get(kind, ())
        with self._lock:
            self._number += 1
            for old in [each for each in self._events if each.video == video and each.kind in outdated]:
                self._events.remove(old)
            if len(self._events) == MOST_EVENTS:
                self._lost = self._events.popleft().number
            self._events.append(Event(self._number, video, kind, data))
        self._wake_from_anywhere()

    @property
    def last(self) -> int:
        """The number of the newest event."""
        return self._number

    def since(self, number: int, video: str | None = None) -> list[Event]:
        """What happened after an event, to one video or to all."""
        with self._lock:
            return [each for each in self._events if each.number > number and video in (None, each.video)]

    def position(self, event_id: str | None) -> int | None:
        """The number in an id of `id_of`, or `None` where events after it may be lost."""
        epoch, _, number = (event_id or "").partition("-")
        if epoch != self.epoch or not number.isdecimal() or len(number) > 18 or int(number) > self._number:
            return None
        return int(number) if int(number) >= self._lost else None

    def id_of(self, number: int) -> str:
        """As a client sees it, and sends it back as `Last-Event-ID`."""
        return f"{self.epoch}-{number}"

    async def news(self, seconds: float) -> None:
        """Returns after the next event, or after some seconds."""
        assert self._news is not None
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return

    def _wake_from_anywhere(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # closed, perhaps just now by its own thread: nobody reads any more
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        assert self._news is not None
        self._news.set()
        self._news = asyncio.Event()
