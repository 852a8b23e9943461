"""Server-sent events: what happens to one video or to all, from where a client left off. Knows the format."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool

from .jobs import FINISHED, RUNNING
from .refusals import RefusedError
from .service import Service

SILENT_S = 15.0  # then a comment is sent, so that nobody in between takes the connection for dead
_SILENCE = ": nothing new\n\n"


async def video_events(service: Service, id: str, last_event_id: str | None) -> AsyncIterator[str]:
    """Ends with the state in which the video ended, or with "deleted".

    A client that says which event it saw last gets those after it. Any other gets the video as it is first.
    """
    log = service.events
    number = log.position(last_event_id)
    if number is None:
        number = log.last
        try:
            shown = await run_in_threadpool(lambda: service.video(service.get(id)))
        except RefusedError:
            yield _event(log.id_of(number), "deleted", {"id": id})
            return
        yield _event(log.id_of(number), "video", shown)
        if shown["state"] in FINISHED:
            return
    while not log.closed:
        events = log.since(number, id)
        for event in events:
            yield _event(log.id_of(event.number), event.kind, event.data)
            number = event.number
            if event.kind == "deleted" or (event.kind == "video" and event.data["state"] in FINISHED):
                return
        if not events:
            before = log.last
            await log.news(SILENT_S)
            if log.last == before:
                yield _SILENCE


async def all_events(service: Service, last_event_id: str | None) -> AsyncIterator[str]:
    """Never ends. Begins with "reset" where the client has to list the videos anew."""
    log = service.events
    number = log.position(last_event_id)
    if number is None:
        number = log.last
        yield _event(log.id_of(number), "reset", {})
        known = log.since(0)
        states = {event.video: event.data["state"] for event in known if event.kind == "video"}
        for event in known:  # the next picture of what runs may be minutes away
            if event.kind == "preview" and states.get(event.video) == RUNNING:
                yield _event(log.id_of(number), "preview", event.data)
    while not log.closed:
        events = log.since(number)
        if events and log.position(log.id_of(number)) is None:  # too slow: some are lost
            number = log.last
            yield _event(log.id_of(number), "reset", {})
            continue
        for event in events:
            yield _event(log.id_of(event.number), event.kind, event.data)
            number = event.number
        if not events:
            before = log.last
            await log.news(SILENT_S)
            if log.last == before:
                yield _SILENCE


def _event(id: str, kind: str, data: dict[str, Any]) -> str:
    return f"id: {id}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
