"""A server that is killed at any moment loses no video that it accepted, and finishes each once."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from benchmarks import server_kills
from tests.runtime.server.processes import serving
from tests.runtime.server.served import CIRCLE, wait_for

TINY = {"prompt": CIRCLE, "height": 32, "width": 32, "num_frames": 1, "num_inference_steps": 1}
TABLE = "mutoscope.server.jobs:JobTable"
TRANSITIONS = [
    ("before", f"{TABLE}.add"),
    ("after", f"{TABLE}.add"),
    ("before", f"{TABLE}.claim"),
    ("after", f"{TABLE}.claim"),
    ("before", "mutoscope.server.worker:make_file"),
    ("before", "mutoscope.output.video:publish"),
    ("after", "mutoscope.output.video:publish"),
    ("before", f"{TABLE}.complete"),
    ("after", f"{TABLE}.complete"),
]
ENDINGS = [
    ("after", f"{TABLE}.mark_deleted"),
    ("before", f"{TABLE}.forget"),
    ("after", f"{TABLE}.forget"),
    ("after", f"{TABLE}.cancel"),
]


def ask(url: str, method: str, path: str, **more: Any) -> httpx2.Response | None:
    """The answer, or `None` where the server died over it."""
    with suppress(httpx2.TransportError):
        return httpx2.request(method, url + path, timeout=60, **more)
    return None


def accepted(url: str, **fields: Any) -> str | None:
    answer = ask(url, "POST", "/v1/videos", json=TINY | fields)
    return answer.json()["id"] if answer is not None else None


def videos(url: str) -> dict[str, dict[str, Any]]:
    return {each["id"]: each for each in httpx2.get(f"{url}/v1/videos?limit=100", timeout=60).json()["data"]}


def all_ended(url: str) -> dict[str, dict[str, Any]]:
    def unfinished() -> bool:
        return any(each["state"] in ("queued", "running") for each in videos(url).values())

    wait_for(lambda: not unfinished(), 120)
    return videos(url)


def refuse_traces(folder: Path, shown: dict[str, dict[str, Any]]) -> None:
    """Whatever lies in the folder belongs to a finished video, and is what its row says."""
    whole = {id for id, each in shown.items() if each["state"] == "completed"}
    assert {path.name for path in (folder / "videos").iterdir()} == whole
    for id in whole:
        [file] = (folder / "videos" / id).iterdir()
        assert file.name == "video.mp4"
        assert hashlib.sha256(file.read_bytes()).hexdigest() == shown[id]["sha256"]
    with sqlite3.connect(folder / "jobs.sqlite3") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_a_kill_at_any_transition_loses_nothing_and_doubles_nothing(tmp_path: Path):
    taken: list[str] = []
    before: dict[str, Any] = {}
    for seed, (when, where) in enumerate(TRANSITIONS):
        program = ("-m", "tests.runtime.server.dying", when, where)
        with serving(tmp_path, "--attempts", "100", program=program) as server:
            for number in range(2):  # the first may die before it is answered, and the second wakes the worker then
                id = accepted(server.url, seed=10 * seed + number) if server.url else None
                taken += [id] if id else []
            assert server.process.wait(60) == -9, f"{when} {where} was not reached"
    with serving(tmp_path, "--attempts", "100") as server:
        shown = all_ended(server.url)
        before = {id: each["finished_at"] for id, each in shown.items()}
        assert server.end() == 0
    assert set(taken) <= set(shown) and len(taken) >= len(TRANSITIONS) - 2
    assert {each["state"] for each in shown.values()} == {"completed"}
    assert len({each["seed"] for each in shown.values()}) == len(shown)  # none is there twice
    with serving(tmp_path) as server:
        assert {id: each["finished_at"] for id, each in videos(server.url).items()} == before  # none was made again
    refuse_traces(tmp_path, shown)


def test_a_kill_while_a_video_is_deleted_or_cancelled_leaves_nothing_of_it(tmp_path: Path):
    ids = []
    with serving(tmp_path) as server:
        for seed in range(len(ENDINGS)):
            ids.append(accepted(server.url, seed=seed))
        all_ended(server.url)
    for id, (when, where) in zip(ids, ENDINGS, strict=True):
        with serving(tmp_path, program=("-m", "tests.runtime.server.dying", when, where)) as server:
            if where.endswith("cancel"):
                ask(server.url, "POST", f"/v1/videos/{accepted(server.url, num_inference_steps=50)}/cancel")
            else:
                ask(server.url, "DELETE", f"/v1/videos/{id}")
            assert server.process.wait(60) == -9
        with serving(tmp_path) as server:
            shown = all_ended(server.url)
    assert not set(ids[:3]) & set(shown)
    assert sorted(each["state"] for each in shown.values()) == ["cancelled", "completed"]
    refuse_traces(tmp_path, shown)


def test_kills_at_random_moments_lose_nothing(tmp_path: Path):
    """In short; it was run 200 times: `benchmarks/results/server_kills.json`."""
    server_kills.main(["--rounds", "4", "--seed", "7", "--output", str(tmp_path / "kills.json")])
    result = json.loads((tmp_path / "kills.json").read_text())
    assert result["faults"] == [] and result["rows"][0]["accepted"] >= 4


def test_a_video_that_kills_the_server_fails_in_the_end_and_does_not_block_the_queue(tmp_path: Path):
    deadly = ("-m", "tests.runtime.server.dying", "before", "mutoscope.server.worker:make_file")
    with serving(tmp_path, "--attempts", "2", program=deadly) as server:
        poison = accepted(server.url)
        assert server.process.wait(60) == -9
    with serving(tmp_path, "--attempts", "2", program=deadly) as server:
        assert server.process.wait(60) == -9
    with serving(tmp_path, "--attempts", "2") as server:
        shown = videos(server.url)[str(poison)]
        assert (shown["state"], shown["error"]["code"], shown["attempts"]) == ("failed", "worker_ended", 2)
        assert "killed" in shown["error"]["message"]
        other = accepted(server.url)
        assert all_ended(server.url)[str(other)]["state"] == "completed"


@pytest.mark.parametrize("how", ["its parent ends", "SIGTERM"])
def test_an_ordered_end_gives_the_running_video_back_and_that_is_no_attempt(how: str, tmp_path: Path):
    with serving(tmp_path, "--attempts", "1") as server:
        id = str(accepted(server.url, num_frames=5, num_inference_steps=500, width=96, height=96))
        wait_for(lambda: videos(server.url)[id].get("step"))
        if how == "SIGTERM":
            server.process.terminate()
            assert server.process.wait(60) == 0
        else:
            assert server.end() == 0
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as connection:
        assert connection.execute("SELECT state, attempts FROM jobs").fetchall() == [("queued", 0)]
    connection.close()
