"""The log of events by itself; over HTTP it is tested in test_stream.py."""

from __future__ import annotations

import asyncio

import pytest
from mutoscope.server.events import EventLog


def test_nothing_that_was_said_of_a_deleted_video_is_kept():
    log = EventLog()
    for video in ("mine", "other"):
        for kind in ("video", "progress", "preview"):
            log.publish(video, kind, {"prompt": "a secret"})
    log.publish("mine", "deleted", {"id": "mine"})
    assert [(each.kind, each.data) for each in log.since(0, "mine")] == [("deleted", {"id": "mine"})]
    assert [each.kind for each in log.since(0, "other")] == ["video", "progress", "preview"]
    assert [each.kind for each in log.since(5)] == ["preview", "deleted"]  # their numbers stay


def test_of_previews_and_of_progress_only_the_newest_are_kept():
    log = EventLog()
    for step in range(3):
        for kind in ("progress", "preview"):
            log.publish("mine", kind, {"step": step})
    assert [(each.kind, each.data) for each in log.since(0)] == [("progress", {"step": 2}), ("preview", {"step": 2})]


def test_what_happens_while_the_loop_of_the_readers_closes_is_no_error_of_who_tells_it(
    monkeypatch: pytest.MonkeyPatch,
):
    """A worker tells of its steps until it has ended, which is after the server."""
    log = EventLog()

    async def attached() -> asyncio.AbstractEventLoop:
        log.attach()
        return asyncio.get_running_loop()

    loop = asyncio.run(attached())
    with monkeypatch.context() as closed_after_a_look:
        closed_after_a_look.setattr(loop, "is_closed", lambda: False)
        log.publish("mine", "progress", {"step": 1})
    assert [each.kind for each in log.since(0)] == ["progress"]
