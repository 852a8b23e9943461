"""A worker in a process of its own, on the data folder of a server, whose clients are told what it does."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from ..codec import to_plain
from ..errors import RequestError
from ..terminal import note
from .jobs import JobTable
from .live import Live
from .news import PREVIEW, PROGRESS, News
from .outcomes import Outcomes
from .owners import Owners
from .studio import TABLE, VIDEOS, WORKERS, studio_of
from .worker import Worker

WAIT_S = 0.2  # between two looks at whether the worker is to end


class Reporter:
    """The audience of such a worker. What changes in the table is news by itself."""

    def __init__(self, news: News) -> None:
        self._news = news

    def changed(self, id: str) -> None:
        """See `Audience`."""

    def progress(self, live: Live) -> None:
        """See `Audience`."""
        self._news.put(live.id, PROGRESS, to_plain(live))

    def preview(self, id: str, picture: dict[str, Any]) -> None:
        """See `Audience`."""
        self._news.put(id, PREVIEW, picture)


def work(data: Path, options: Mapping[str, Any], ended: threading.Event) -> None:
    """Makes what waits in the queue of a data folder, as its server says, until it is told to end.

    Args:
        data: the folder, which must exist.
        options: fields of `RuntimeOptions` that stand in place of the server's.
        ended: set from elsewhere; a video that is being made then goes back into the queue.

    Raises:
        RequestError: no server has used the folder, or the options do not fit together.
        BundleError: a bundle is refused.
    """
    if not (data / TABLE).exists():
        raise RequestError(f"{data} is no data folder of a server; name the one that the server was given")
    with ExitStack() as stack:
        table = stack.enter_context(JobTable(data / TABLE, tells=True))
        news = stack.enter_context(News(data / TABLE))
        owners = Owners(data / WORKERS)
        name = stack.enter_context(owners.hold())
        note(f"works for {data}")
        while not ended.is_set():
            said = table.settings()
            studio = studio_of(said, data / VIDEOS, options)
            outdated = partial(_differs, table, said)
            worker = Worker(name, studio, table, Outcomes(studio, table, owners), Reporter(news), outdated)
            worker.start()
            try:
                while worker.alive and not ended.wait(WAIT_S):
                    continue
            finally:
                worker.end()


def _differs(table: JobTable, said: str) -> bool:
    """Whether a server was started since then that makes videos in another way."""
    return table.settings() != said
