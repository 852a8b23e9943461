"""What can be done with videos while they wait, run and lie there, and what is left of them."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from mutoscope.errors import OutOfMemoryError
from mutoscope.policy import UNSAID

from tests.runtime.server.served import CIRCLE, SMALL, Served, running, wait_for

SECRET = "a secret circle that nobody else may read of"


def held(served: Served, **fields: Any) -> str:
    """A video whose second step is held."""
    id = str(served.make(**fields)["id"])
    served.gate.allow(1)
    served.wait_for_step(1)
    wait_for(lambda: served.gate.steps == 2)
    return id


@pytest.mark.parametrize("way", ["cancel", "delete"])
def test_cancel_and_delete_stop_the_work_within_one_step(way: str, served: Served):
    id = held(served)
    answer = served.http.post(f"/v1/videos/{id}/cancel") if way == "cancel" else served.http.delete(f"/v1/videos/{id}")
    assert answer.status_code == 200  # at once, though a step runs
    served.gate.open()
    other = served.ended(served.make(num_inference_steps=1)["id"])
    assert (other["state"], served.gate.steps) == ("completed", 3)  # the step that ran, and one of the other
    assert {path.name for path in served.service.studio.folder.iterdir()} == {other["id"]}
    shown = served.http.get(f"/v1/videos/{id}")
    assert shown.status_code == 404 if way == "delete" else shown.json()["error"]["code"] == "cancelled"


@pytest.mark.parametrize("way", ["cancel", "delete"])
def test_a_video_that_waits_is_never_begun(way: str, served: Served):
    first, second = held(served), served.make()["id"]
    if way == "cancel":
        assert served.http.post(f"/v1/videos/{second}/cancel").json()["state"] == "cancelled"
    else:
        served.http.delete(f"/v1/videos/{second}")
    served.gate.open()
    assert served.ended(first)["state"] == "completed"
    last = served.ended(served.make(num_inference_steps=1)["id"])
    assert (last["state"], served.gate.steps) == ("completed", 4 + 1)


def test_a_finished_video_names_the_layers_that_say_what_it_is(shared: Served):
    layers = shared.ended(shared.make()["id"])["layers"]
    assert set(layers) == {"tag", "watermark", "signature"} and layers["tag"]["present"] is True
    assert layers["watermark"]["present"] is False and "smaller than 256x256" in layers["watermark"]["detail"]


def test_cancelling_what_has_ended_changes_nothing(shared: Served):
    video = shared.ended(shared.make()["id"])
    assert shared.http.post(f"/v1/videos/{video['id']}/cancel").json() == video
    assert shared.http.post("/v1/videos/video_0/cancel").status_code == 404


def test_the_queue_tells_how_many_wait_and_in_what_order(served: Served):
    first, second, third = held(served), served.make()["id"], served.make()["id"]
    assert [served.get(id)["queue_position"] for id in (first, second, third)] == [None, 0, 1]
    queue = served.http.get("/v1/queue").json()
    assert (queue["counts"]["running"], queue["counts"]["queued"], queue["running"]) == (1, 2, [first])
    assert queue["limit"] == 100 and queue["seconds_left"] > 0 and queue["waits_because"] is None


def test_again_makes_the_same_video_with_another_seed(shared: Served):
    video = shared.ended(shared.make()["id"])
    by_chance = shared.http.post(f"/v1/videos/{video['id']}/again").json()
    chosen = shared.http.post(f"/v1/videos/{video['id']}/again", json={"seed": 8}).json()
    assert chosen["request"] == video["request"] | {"seed": 8} and chosen["remixed_from_video_id"] == video["id"]
    assert by_chance["request"] == video["request"] | {"seed": by_chance["seed"]} and by_chance["seed"] != 7
    long = {"prompt": "x" * 32_001}
    refused = shared.http.post(f"/v1/videos/{video['id']}/remix", json=long).json()["error"]
    assert (refused["code"], refused["param"]) == ("string_above_max_length", "prompt")
    for body in ({"seed": "8"}, {"sed": 8}, [], {"seed": 2**70}):
        assert shared.http.post(f"/v1/videos/{video['id']}/again", json=body).status_code == 400


def test_a_plan_runs_nothing(shared: Served):
    before = sum(shared.service.table.counts().values())  # of others, one may end meanwhile
    answer = shared.http.post("/v1/videos/plan", json={"prompt": CIRCLE, **SMALL}).json()
    assert (answer["plan"]["num_frames"], answer["plan"]["seed"]) == (5, 7)
    assert sum(shared.service.table.counts().values()) == before
    assert shared.http.post("/v1/videos/plan", json={"prompt": CIRCLE, "num_frames": 6}).status_code == 400


def test_deleting_leaves_nothing_of_the_prompt_on_the_disk(tmp_path: Path):
    with running(tmp_path) as served:
        video = served.ended(served.make(prompt=SECRET)["id"])
        served.http.get(f"/v1/videos/{video['id']}/content?variant=thumbnail")
        kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert SECRET.encode() in kept
        served.http.delete(f"/v1/videos/{video['id']}")
        left = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert b"secret" not in left and video["id"].encode() not in left


def test_videos_are_deleted_when_they_are_as_old_as_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with running(tmp_path, keep=0.5) as served:
        video = served.ended(served.make()["id"])
        half_a_day = 43_200
        assert video["expires_at"] == int(video["finished_at"] + half_a_day)
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + half_a_day - 600)
        served.service.delete_old()
        assert served.get(video["id"])["state"] == "completed"
        monkeypatch.setattr(time, "time", lambda: now() + half_a_day + 600)
        served.service.delete_old()
        assert served.http.get(f"/v1/videos/{video['id']}").status_code == 404
        assert not list((tmp_path / "videos").iterdir())


def test_a_policy_is_asked_before_anything_is_queued(tmp_path: Path):
    seen = []

    def policy(request: Any) -> str | None:
        seen.append(request.prompt)
        return {"no": "this house makes no such videos", "empty": ""}.get(request.prompt)

    with running(tmp_path, policy=policy) as served:
        for prompt, reason in (("no", "this house makes no such videos"), ("empty", UNSAID)):
            answer = served.http.post("/v1/videos", json={"prompt": prompt})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "refused_by_policy")
            assert error["message"] == f"refused: {reason}"
        video = served.make()
        answer = served.http.post(f"/v1/videos/{video['id']}/remix", json={"prompt": "no"})
        assert answer.json()["error"]["code"] == "refused_by_policy"
        assert seen == ["no", "empty", CIRCLE, "no"]
        assert sum(served.service.table.counts().values()) == 1


def test_a_full_disk_is_507_and_holds_the_queue(served: Served, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    waiting = [held(served), served.make()["id"]]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    answer = served.http.post("/v1/videos", json={"prompt": CIRCLE, **SMALL})
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")
    assert answer.headers["x-should-retry"] == "false"
    ready = served.http.get("/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (503, "the disk is almost full")
    served.gate.open()
    assert served.ended(waiting[0])["state"] == "completed"
    assert served.get(waiting[1])["state"] == "queued"
    monkeypatch.undo()
    served.service.worker.wake()
    assert served.ended(waiting[1])["state"] == "completed"


def test_a_table_that_cannot_grow_is_507_too(served: Served, monkeypatch: pytest.MonkeyPatch):
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorname = "SQLITE_FULL"

    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(served.service.table, "add", full)
    assert served.http.post("/v1/videos", json={"prompt": CIRCLE, **SMALL}).status_code == 507
    error.sqlite_errorname = "SQLITE_IOERR"
    answer = served.http.post("/v1/videos", json={"prompt": CIRCLE, **SMALL})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")


def test_out_of_memory_is_tried_again_and_then_told(served: Served):
    served.gate.raises = OutOfMemoryError("not enough")
    video = served.ended(served.make()["id"])
    assert (video["state"], video["attempts"], video["error"]["code"]) == ("failed", 3, "out_of_memory")
    served.gate.raises = None
    served.gate.open()
    assert served.ended(served.make()["id"])["state"] == "completed"


def test_the_worker_goes_on_after_the_queue_failed(served: Served, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> None:
        monkeypatch.undo()
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(served.service.table, "complete", broken)
    served.gate.open()
    id = served.make()["id"]
    wait_for(lambda: served.gate.steps >= 4)
    time.sleep(0.2)
    served.service.worker.wake()
    video = served.ended(id)
    assert (video["state"], video["attempts"]) == ("completed", 2)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has access lists in place of these modes")
def test_the_files_are_for_their_owner_alone(shared: Served):
    video = shared.ended(shared.make()["id"])
    shared.http.get(f"/v1/videos/{video['id']}/content?variant=spritesheet")
    folder = shared.service.studio.folder.parent
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    assert {mode for path, mode in modes.items() if path.parent == folder and path.is_file()} == {0o600}
    assert modes[folder / "videos" / video["id"]] == 0o700


def test_metrics_are_what_prometheus_reads(shared: Served):
    from prometheus_client.parser import text_string_to_metric_families as parsed

    shared.ended(shared.make()["id"])
    answer = shared.http.get("/metrics")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in parsed(answer.text)
        for sample in family.samples
    }
    counts = shared.service.table.counts()
    assert all(found["mutoscope_jobs", state] == count for state, count in counts.items())
    assert found["mutoscope_videos_made_total",] >= 1 and found["mutoscope_resident_memory_bytes",] > 1e7
    assert answer.headers["content-type"].startswith("text/plain; version=")


def test_health_and_readiness(shared: Served):
    assert shared.http.get("/healthz").json() == {"alive": True}
    assert shared.http.get("/readyz").json()["ready"] is True
