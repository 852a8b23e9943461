"""Workers in further processes on the data folder of a server: what clients see of them, and what is left of them."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from mutoscope.builtin import bundle_path
from mutoscope.bundle.bundle import Bundle
from mutoscope.cli import main
from mutoscope.errors import BundleError, OutputError, RequestError
from mutoscope.request import OutputOptions, RuntimeOptions
from mutoscope.server.further import Reporter, work
from mutoscope.server.jobs import JobTable
from mutoscope.server.news import News
from mutoscope.server.outcomes import Outcomes
from mutoscope.server.owners import Owners
from mutoscope.server.studio import TABLE, VIDEOS, WORKERS, studio_of
from mutoscope.server.worker import Worker

from tests.runtime.server.processes import ROOT
from tests.runtime.server.served import Gate, GatedBackend, Served, running, wait_for
from tests.runtime.server.test_stream import events


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server looks often for workers that have ended."""
    monkeypatch.setattr("mutoscope.server.following.LOOK_S", 0.05)


@contextmanager
def further(served: Served, gate: Gate) -> Iterator[Worker]:
    """A worker with a connection and a lock of its own, as one in another process has them."""
    studio = replace(served.service.studio, options=replace(served.service.studio.options, backend=GatedBackend(gate)))
    data = studio.folder.parent
    table, news, owners = JobTable(data / TABLE, tells=True), News(data / TABLE), Owners(data / WORKERS)
    with owners.hold() as name:
        worker = Worker(name, studio, table, Outcomes(studio, table, owners), Reporter(news))
        worker.start()
        try:
            yield worker
        finally:
            gate.open()
            worker.end()
            news.close()
            table.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Of the built-in bundle itself, whose network some of the processes run."""
    with running(tmp_path, bundles={"built-in": Bundle.open(bundle_path(), verify=False)}) as found:
        found.gate.close()
        yield found


@pytest.fixture
def busy(served: Served) -> str:
    """A video that keeps the server's own worker, so that the next is another's."""
    id = str(served.make()["id"])
    wait_for(lambda: served.gate.steps == 1)
    return id


@pytest.fixture
def gate() -> Gate:
    """Of the further worker; closed."""
    gate = Gate()
    gate.close()
    return gate


def test_the_servers_clients_see_how_far_it_is_and_what_it_makes(served: Served, busy: str, gate: Gate):
    with further(served, gate):
        id = served.make()["id"]

        def two_steps_and_the_rest() -> None:
            gate.allow(2)
            video = wait_for(lambda: (seen := served.get(id)).get("step") == 2 and seen)
            assert (video["state"], video["steps"], video["stage"], video["attempts"]) == ("running", 4, "denoise", 1)
            assert served.http.get("/v1/queue").json()["running"] == [busy, id]
            assert served.service.lives()[0].step == 2
            gate.open()

        found = events(served, id, begun=two_steps_and_the_rest)
        kinds = [kind for _, kind, _ in found]
        assert (kinds[0], kinds[-1]) == ("video", "video") and {"progress", "preview"} <= set(kinds)
        assert found[-1][2] == served.get(id) and found[-1][2]["state"] == "completed"
        assert served.http.get(f"/v1/videos/{id}/content").content[4:8] == b"ftyp"
        assert "mutoscope_videos_made_total 1.0" in served.http.get("/metrics").text


@pytest.mark.parametrize("way", ["cancel", "delete"])
def test_cancel_and_delete_stop_its_work_within_one_step(way: str, served: Served, busy: str, gate: Gate):
    with further(served, gate):
        id = served.make()["id"]
        gate.allow(1)
        wait_for(lambda: gate.steps == 2)
        path = f"/v1/videos/{id}"
        answer = served.http.post(f"{path}/cancel") if way == "cancel" else served.http.delete(path)
        assert answer.status_code == 200  # at once, though a step runs
        assert (served.service.studio.folder / id).exists()  # its worker still writes there
        gate.open()
        other = served.ended(served.make(num_inference_steps=1)["id"])
        assert (other["state"], gate.steps) == ("completed", 3)  # the step that ran, and one of the other
    assert {path.name for path in served.service.studio.folder.iterdir()} == {other["id"], busy}
    shown = served.http.get(f"/v1/videos/{id}")
    assert shown.status_code == 404 if way == "delete" else shown.json()["error"]["code"] == "cancelled"
    assert [job.id for job in served.service.table.held()] == [busy] and served.service.table.deleted() == []
    if way == "delete":  # its row, its previews and what was told of it
        left = [path.read_bytes() for path in served.service.studio.folder.parent.rglob("*") if path.is_file()]
        assert id.encode() not in b"".join(left)


def test_what_it_was_making_when_it_ended_in_order_waits_again_and_that_is_no_attempt(
    served: Served, busy: str, gate: Gate
):
    with further(served, gate) as worker:
        id = served.make()["id"]
        wait_for(lambda: gate.steps == 1)
        gate.allow(1)
        worker.end()
        assert wait_for(lambda: (video := served.get(id))["state"] == "queued" and video)["attempts"] == 0
    assert not (served.service.studio.folder / id).exists()


def test_the_video_of_one_that_was_killed_waits_again_and_fails_after_too_many_attempts(served: Served, busy: str):
    with JobTable(served.service.studio.folder.parent / TABLE) as table:
        id = served.make()["id"]
        for attempt in (1, 2, 3):
            job = table.claim(f"dead-{attempt}", time.time())
            assert job is not None and (job.id, job.attempts) == (id, attempt)
            served.service.studio.place(id).mkdir()
            left = wait_for(lambda: (video := served.get(id))["state"] != "running" and video)
            assert left["state"] == ("queued" if attempt < 3 else "failed")
            assert not served.service.studio.place(id).exists()
    assert left["error"]["code"] == "worker_ended" and "(3 attempts)" in left["error"]["message"]


@pytest.mark.parametrize("way", ["cancel", "delete"])
def test_a_video_that_nobody_wants_is_tidied_up_for_one_that_was_killed(way: str, served: Served, busy: str):
    with JobTable(served.service.studio.folder.parent / TABLE) as table:
        id = served.make()["id"]
        served.service.studio.place(id).mkdir()
        path = f"/v1/videos/{id}"
        assert table.claim("dead", time.time())
        answer = served.http.post(f"{path}/cancel") if way == "cancel" else served.http.delete(path)
        assert answer.status_code == 200
        wait_for(lambda: not table.held("dead") and not table.deleted())
    assert not served.service.studio.place(id).exists()


def test_a_server_that_starts_leaves_what_others_make_alone(tmp_path: Path, gate: Gate):
    with running(tmp_path) as before:
        before.gate.close()
        before.make()
        wait_for(lambda: before.gate.steps == 1)
        with further(before, gate):
            id = before.make(num_inference_steps=2)["id"]
            wait_for(lambda: gate.steps == 1)
            with running(tmp_path) as served:
                video = wait_for(lambda: (seen := served.get(id)).get("stage") and seen)
                assert (video["state"], video["attempts"]) == ("running", 1)
                gate.open()
                assert served.ended(id)["attempts"] == 1


def test_one_whose_server_makes_videos_in_another_way_now_begins_none(served: Served, busy: str, gate: Gate):
    table, owners = served.service.table, Owners(served.service.studio.folder.parent / WORKERS)
    studio = served.service.studio
    id = served.make()["id"]
    with owners.hold() as name, News(studio.folder.parent / TABLE) as news:
        worker = Worker(name, studio, table, Outcomes(studio, table, owners), Reporter(news), lambda: True)
        worker.start()
        wait_for(lambda: not worker.alive)
        worker.end()
    assert (served.get(id)["state"], served.get(id)["attempts"]) == ("queued", 0)


def test_it_goes_on_with_what_a_server_that_was_started_again_says(served: Served, busy: str):
    studio = replace(served.service.studio, options=RuntimeOptions(backend="onnxruntime", precision="fp32"))
    table, data, ended = served.service.table, studio.folder.parent, threading.Event()
    table.set_settings(replace(studio, bundles={"other": studio.bundles["built-in"]}).settings())
    thread = threading.Thread(target=work, args=(data, {"threads": 1}, ended))
    thread.start()
    wait_for(lambda: len(list((data / WORKERS).iterdir())) == 2)
    table.set_settings(studio.settings())
    video = served.ended(served.make(num_frames=1, num_inference_steps=1)["id"])
    assert (video["state"], video["attempts"], video["error"]) == ("completed", 1, None)
    ended.set()
    thread.join(60)
    assert len(list((data / WORKERS).iterdir())) == 1  # its lock goes with it


def test_a_model_that_there_is_no_more_fails_in_words(served: Served, busy: str, gate: Gate):
    id = served.make()["id"]
    studio = served.service.studio
    gone = replace(studio, bundles={"other": studio.bundles["built-in"]})
    owners = Owners(studio.folder.parent / WORKERS)
    with owners.hold() as name, News(studio.folder.parent / TABLE) as news:
        worker = Worker(name, gone, served.service.table, Outcomes(gone, served.service.table, owners), Reporter(news))
        worker.start()
        error = served.ended(id)["error"]
        worker.end()
    assert "no model 'built-in'" in error["message"] and "other" in error["message"]


def test_the_settings_of_a_server_make_the_same_studio_elsewhere(served: Served):
    own = RuntimeOptions(backend="onnxruntime", precision="fp32", memory_limit=10**9)
    studio = replace(served.service.studio, options=own, output=OutputOptions(metadata="none", watermark=False))
    found = studio_of(studio.settings(), studio.folder, {"threads": 1})
    assert found.options == replace(own, threads=1)
    assert {name: bundle.sha256 for name, bundle in found.bundles.items()} == {
        name: bundle.sha256 for name, bundle in studio.bundles.items()
    }
    assert replace(found, bundles={}, options=own) == replace(studio, bundles={})
    with pytest.raises(BundleError, match="is not the bundle that the server opened as built-in"):
        studio_of(studio.settings().replace(studio.bundles["built-in"].sha256, "0" * 64), studio.folder, {})
    with pytest.raises(RequestError, match="no server has used this data folder yet"):
        studio_of("", studio.folder, {})


def test_of_news_only_the_newest_is_kept_and_none_of_what_has_ended(served: Served, busy: str):
    data = served.service.studio.folder.parent
    path, living = data / TABLE, Owners(data / WORKERS).hold()
    with JobTable(path, tells=True) as table, News(path) as news, News(path) as reader, living as name:
        id = served.make()["id"]
        job = table.claim(name, time.time())
        assert job is not None
        for step in range(3):
            news.put(id, "progress", {"step": step})
            news.put(id, "preview", {"step": step})
        told = reader.since(0)
        assert [(each.kind, each.data) for each in told] == [
            ("state", {}), ("progress", {"step": 2}), ("preview", {"step": 2}),
        ]  # fmt: skip
        assert reader.since(told[-1].number) == []
        table.give_back(job, counts=False)
        news.put(id, "progress", {"step": 3})  # by a worker that has not seen it yet
        assert [each.kind for each in reader.since(told[-1].number)] == ["state"]
        reader.forget_changes()
        with News(path) as late:
            assert late.since(0) == []


def test_news_that_cannot_be_read_holds_up_none_after_it(served: Served, busy: str):
    data = served.service.studio.folder.parent
    with JobTable(data / TABLE, tells=True) as table, News(data / TABLE) as news, Owners(data / WORKERS).hold() as name:
        id = served.make()["id"]
        job = table.claim(name, time.time())
        assert job is not None
        news.put(id, "progress", {"further": 1})
        news.put(id, "preview", {"step": 2})
        wait_for(lambda: [each.data["step"] for each in served.service.events.since(0, id) if each.kind == "preview"])
        table.give_back(job, counts=False)


def test_a_queue_of_another_version_is_refused(tmp_path: Path):
    JobTable(tmp_path / TABLE).close()
    with closing(sqlite3.connect(tmp_path / TABLE)) as connection:
        connection.execute("PRAGMA user_version = 1")
    with pytest.raises(OutputError, match="of another version of Mutoscope"):
        JobTable(tmp_path / TABLE)


@pytest.mark.parametrize(
    ("name", "words"), [("none", "there is no folder"), ("empty", "is no data folder of a server"), ("open", "chmod")]
)
def test_a_folder_that_no_server_uses_is_refused(name: str, words: str, tmp_path: Path, capsys):
    (tmp_path / "empty").mkdir(mode=0o700)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    assert main(["work", str(tmp_path / name)]) == 2
    assert words in capsys.readouterr().err


@contextmanager
def working(data: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "mutoscope", "work", str(data)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_process_that_is_killed_or_ended_loses_nothing(served: Served, busy: str):
    studio = replace(served.service.studio, options=RuntimeOptions(backend="onnxruntime", precision="fp32"))
    served.service.table.set_settings(studio.settings())
    id = served.make(num_inference_steps=500)["id"]
    seen = []
    for number in (signal.SIGKILL, signal.SIGTERM):
        with working(studio.folder.parent) as process:
            wait_for(lambda: served.get(id).get("step"))  # of a real network, in another process
            process.send_signal(number)
            seen.append(process.wait(60))
            video = wait_for(lambda: (seen := served.get(id))["state"] == "queued" and seen)
            assert video["attempts"] == 1  # the kill was one, and the end in order none
    assert seen == [-signal.SIGKILL, 0]
    assert list((studio.folder.parent / VIDEOS).iterdir()) == [studio.place(busy)]
    served.gate.open()
    assert served.ended(id)["attempts"] == 2
