"""What happens to videos, as server-sent events, from where a client left off."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from typing import Any

import av
import pytest
from mutoscope.server import stream
from mutoscope.server.events import MOST_EVENTS, EventLog
from mutoscope.server.stream import event_stream

from tests.runtime.server.served import Served, wait_for

Event = tuple[str, str, dict[str, Any]]  # id, kind, data


def read(lines: Iterator[str]) -> Iterator[Event]:
    """As the standard of HTML says: fields until an empty line; a colon begins a comment."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield fields["id"], fields["event"], json.loads(fields["data"])
            fields = {}


def events(served: Served, id: str, last: str | None = None, begun: Callable[[], object] = lambda: None) -> list[Event]:
    """All until the end of the stream; `begun` is called once the first has come, and nothing after it is missed."""
    headers = {} if last is None else {"last-event-id": last}
    with served.http.stream("GET", f"/v1/videos/{id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = read(answer.iter_lines())
        first = list(islice(found, 1))
        begun()
        return [*first, *found]


def test_a_stream_tells_states_steps_frames_and_previews_and_ends_with_the_video(served: Served):
    id = served.make()["id"]
    found = events(served, id, begun=served.gate.open)
    kinds = [kind for _, kind, _ in found]
    assert (kinds[0], kinds[-1]) == ("video", "video")
    assert found[-1][2] == served.get(id) and found[-1][2]["state"] == "completed"
    progress = [data["progress"] for _, kind, data in found if kind == "progress"]
    assert progress == sorted(progress) and progress[-1] == 99
    preview = next(data for _, kind, data in found if kind == "preview")
    image = base64.b64decode(preview["image"].removeprefix("data:image/webp;base64,"))
    with av.open(io.BytesIO(image), format="webp_pipe") as container:
        [frame] = container.decode(video=0)
    assert (frame.height, frame.width) == (preview["height"], preview["width"]) and preview["id"] == id


def test_a_client_that_comes_back_gets_what_it_missed(served: Served):
    id = served.make()["id"]
    served.gate.allow(2)
    served.wait_for_step(2)
    with served.http.stream("GET", f"/v1/videos/{id}/events") as answer:
        last, kind, data = next(read(answer.iter_lines()))
    assert (kind, data["state"], data["step"]) == ("video", "running", 2)
    served.gate.open()
    served.ended(id)
    missed = events(served, id, last)
    assert missed[0][1] != "video" and missed[-1][2]["state"] == "completed"  # it goes on, and does not begin anew
    numbers = [int(each.rpartition("-")[2]) for each, _, _ in missed]
    assert numbers == sorted(numbers) and numbers[0] > int(last.rpartition("-")[2])


def test_a_client_that_has_seen_the_end_is_told_to_stay_away(served: Served):
    served.gate.open()
    id = served.make()["id"]
    served.ended(id)
    last, _, data = wait_for(lambda: events(served, id))[-1]
    assert data["state"] == "completed"
    answer = served.http.get(f"/v1/videos/{id}/events", headers={"last-event-id": last})
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("last", ["", "0123abcd-5", "nonsense", "-", "x-99999999999999999999"])
def test_an_id_of_another_server_begins_anew(last: str, shared: Served):
    id = shared.ended(shared.make()["id"])["id"]
    [(_, kind, data)] = events(shared, id, last)
    assert (kind, data["state"]) == ("video", "completed")


def test_a_stream_ends_with_the_deletion_of_its_video(served: Served):
    first, second = served.make()["id"], served.make()["id"]
    with served.http.stream("GET", f"/v1/videos/{second}/events") as answer:
        found = read(answer.iter_lines())
        next(found)
        served.http.delete(f"/v1/videos/{second}")
        assert [(kind, data) for _, kind, data in found][-1] == ("deleted", {"id": second})
    assert served.http.get(f"/v1/videos/{second}/events").status_code == 404
    assert served.get(first)["state"] in ("queued", "running")


def test_all_videos_are_told_on_one_stream_which_begins_with_reset(served: Served):
    served.gate.open()
    with served.http.stream("GET", "/v1/events") as answer:
        found = read(answer.iter_lines())
        assert next(found)[1:] == ("reset", {})
        ids = [served.make()["id"], served.make()["id"]]
        ended = [data["id"] for _, kind, data in found_until(found, 2) if kind == "video"]
        assert set(ended) == set(ids)


def found_until(found: Iterator[Event], videos: int) -> list[Event]:
    """Until as many videos have ended."""
    taken = []
    for event in found:
        taken.append(event)
        videos -= event[1] == "video" and event[2]["state"] == "completed"
        if not videos:
            return taken
    raise AssertionError


def test_the_events_of_a_server_that_ends_end_too(tmp_path):
    from tests.runtime.server.served import running

    with running(tmp_path) as served:
        answer = served.http.send(served.http.build_request("GET", "/v1/events"), stream=True)
        events = iter(read(answer.iter_lines()))
        assert next(events)[1] == "reset"
        served.service.events.close()
        assert list(events) == []


def test_a_log_that_moved_on_says_so():
    log = EventLog()
    for number in range(MOST_EVENTS + 10):
        log.publish(f"video_{number}", "video", {})
    assert log.position(log.id_of(9)) is None
    assert log.position(log.id_of(10)) == 10
    assert log.position(log.id_of(log.last)) == log.last
    assert log.position(log.id_of(log.last + 1)) is None
    assert len(log.since(0)) == MOST_EVENTS


def test_only_the_newest_preview_of_a_video_is_kept():
    log = EventLog()
    for step in range(100):
        log.publish("a", "preview", {"step": step})
        log.publish("b", "preview", {"step": step})
    assert [(event.video, event.data["step"]) for event in log.since(0)] == [("a", 99), ("b", 99)]


def test_a_reader_that_was_too_slow_begins_anew_and_silence_is_broken_by_comments(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream, "SILENT_S", 0.01)

    class OnlyEvents:
        events = EventLog()

    async def told() -> list[str]:
        log = OnlyEvents.events
        log.attach()
        lines: AsyncIterator[str] = event_stream(OnlyEvents(), None)  # type: ignore[arg-type]
        found = [await anext(lines), await anext(lines)]
        for number in range(MOST_EVENTS + 5):
            log.publish(f"video_{number}", "video", {})
        found += [await anext(lines), await anext(lines)]
        await lines.aclose()  # type: ignore[attr-defined]
        return found

    kinds = [line.splitlines()[1 if line.startswith("id") else 0] for line in asyncio.run(told())]
    assert kinds == ["event: reset", ": nothing new", "event: reset", ": nothing new"]
