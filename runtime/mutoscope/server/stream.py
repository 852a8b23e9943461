"""Server-sent events: what happens to one video or to all, from where a client left off. Knows the format."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool

from .events import Event
from .jobs import FINISHED
from .refusals import RefusedError
from .service import Service

SILENT_S = 15.0  # then a comment is sent, so that nobody in between takes the connection for dead
_SILENCE = ": nothing new\n\n"


async def event_stream(service: Service, last_event_id: str | None, id: str | None = None) -> AsyncIterator[str]:
    """What happens to one video, until it has ended or is deleted; or to all of them, until the server ends.

    A client that says which event it saw last gets those after it. Any other, and one that was too slow, begins anew:
    with the video as it is, or with "reset" where it has to list all videos again.
    """
    log, now = service.events, asyncio.get_running_loop().time
    number, told_at = log.position(last_event_id), now()
    while not log.closed:
        found = [] if number is None else log.since(number, id)
        if number is None or log.position(log.id_of(number)) is None:
            number = log.last
            found = [await run_in_threadpool(_beginning, service, number, id)]
        for event in found:
            yield f"id: {log.id_of(event.number)}\nevent: {event.kind}\ndata: {json.dumps(event.data)}\n\n"
            number, told_at = event.number, now()
            if id is not None and _is_last(event.kind, event.data):
                return
        if not found:
            await log.news(SILENT_S)
            if now() - told_at >= SILENT_S:
                yield _SILENCE
                told_at = now()


def _beginning(service: Service, number: int, id: str | None) -> Event:
    if id is None:
        return Event(number, "", "reset", {})
    try:
        return Event(number, id, "video", service.video(service.get(id)))
    except RefusedError:
        return Event(number, id, "deleted", {"id": id})


def _is_last(kind: str, data: dict[str, Any]) -> bool:
    return kind == "deleted" or (kind == "video" and data["state"] in FINISHED)
