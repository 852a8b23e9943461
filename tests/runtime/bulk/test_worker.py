"""The loop of a worker: each video once with its receipt, failures kept, and an end where the machine is at fault."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mutoscope import OutputError, Pipeline, RequestError
from mutoscope.bulk import worker as w
from mutoscope.bulk.receipts import write_lists
from mutoscope.bulk.store import CLAIMS, MAKING
from mutoscope.bulk.tally import Counter
from mutoscope.bulk.task import Batch
from mutoscope.bulk.worker import Worker, open_store, work
from mutoscope.errors import CancelledError

JOBS = [{"prompt": "a circle", "seed": 1, "repeat": 2, "id": "one", "meta": [1]}, {"prompt": "a circle", "seed": 1}]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(w, "WAIT_S", 0.01)


def lists(batch: Batch) -> tuple[list[dict], list[dict]]:
    with open_store(batch) as store:
        write_lists(batch, store)
    return tuple(
        [json.loads(line) for line in (batch.out / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("receipts", "failures")
    )


def left_over(batch: Batch) -> list[str]:
    return os.listdir(batch.out / MAKING) + os.listdir(batch.out / CLAIMS)


def test_every_job_has_a_receipt_in_its_order_and_the_same_video_is_made_once(make_batch, pipeline, backend):
    batch = make_batch(*JOBS)
    Worker(batch, pipeline).run()
    receipts, failed = lists(batch)
    assert [(each["id"], each["repeat"], each["seed"]) for each in receipts] == [
        ("one", 1, 1),
        ("one", 2, 2),
        ("2", 1, 1),
    ]
    assert receipts[0]["key"] == receipts[2]["key"] and len(os.listdir(batch.out / "videos")) == 2
    assert receipts[0]["meta"] == [1] and "meta" not in receipts[2]
    for each in receipts:
        content = (batch.out / each["file"]).read_bytes()
        assert each["sha256"] == each["content_sha256"] == hashlib.sha256(content).hexdigest()
        assert each["attempt"] == 1 and each["bytes"] == len(content) and each["plan"]["seed"] == each["seed"]
        assert set(each["times_s"]) == {"condition", "denoise", "decode", "write"} and each["host"]
        assert each["runtime"]["backend"] == "fake"
    assert failed == left_over(batch) == []
    runs = len(backend.log)
    Worker(batch, pipeline).run()  # again: nothing to do
    assert len(backend.log) == runs


def test_prompts_are_encoded_once_for_their_seeds(make_batch, pipeline, backend):
    Worker(make_batch({"prompt": "a circle", "repeat": 3}), pipeline).run()
    assert backend.log.count(("run", "text_encoder")) == 1


def test_a_video_that_fails_is_left_alone_after_its_attempts_and_the_others_are_made(make_batch, pipeline, backend):
    def poison(timestep, state, latents, **_):
        peak = np.nan if backend.fed[-1][1]["state"].shape[-1] == 4 else 1
        return {"next_state": state, "velocity_peak": np.float32(peak)}

    backend.graphs["denoiser"] = poison
    batch = make_batch(
        {"prompt": "a circle", "width": 32, "id": "bad"}, {"prompt": "a circle", "id": "good"}, attempts=2
    )
    Worker(batch, pipeline).run()
    receipts, (failed,) = lists(batch)
    assert [each["id"] for each in receipts] == ["good"]
    assert (failed["id"], failed["line"]) == ("bad", 1)
    assert [(each["attempt"], each["error"]) for each in failed["attempts"]] == [
        (1, "NumericalError"),
        (2, "NumericalError"),
    ]
    assert failed["attempts"][0]["cause"] and left_over(batch) == []


def test_a_fault_of_a_library_costs_one_video(make_batch, pipeline, backend):
    def broken(**_):
        raise ZeroDivisionError("by zero")

    backend.graphs["denoiser"] = broken
    batch = make_batch({"prompt": "a circle"}, attempts=1)
    Worker(batch, pipeline).run()
    _, (failed,) = lists(batch)
    assert failed["attempts"][0]["cause"] == "by zero"


def test_what_no_other_video_would_fare_better_with_ends_the_worker_and_counts_as_no_attempt(
    make_batch, pipeline, backend
):
    def cancelled(**_):
        raise CancelledError("stopped")

    backend.graphs["denoiser"] = cancelled
    batch = make_batch({"prompt": "a circle"})
    with pytest.raises(CancelledError):
        Worker(batch, pipeline).run()
    assert lists(batch) == ([], []) and left_over(batch) == []


@pytest.mark.parametrize("at", ["publish", "link"])
def test_a_full_disk_ends_the_work_with_nothing_half_written(make_batch, pipeline, monkeypatch, at):
    batch = make_batch(*JOBS)
    real = os.link

    def full(source, target, **_):
        if at == "publish" or "videos" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr("mutoscope.output.destination.os.replace" if at == "publish" else "os.link", full)
    with pytest.raises(OutputError, match="there is no space left"):
        Worker(batch, pipeline).run()
    monkeypatch.undo()
    assert left_over(batch) == os.listdir(batch.out / "videos") == []
    Worker(batch, pipeline).run()
    assert len(lists(batch)[0]) == 3


def test_an_error_of_the_share_is_told_as_one_and_a_closed_pipe_is_not(make_batch, pipeline):
    def gone() -> None:
        raise BrokenPipeError

    def stale() -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    batch = make_batch(*JOBS)
    with pytest.raises(BrokenPipeError):
        Worker(batch, pipeline, gone).run()
    with pytest.raises(OutputError, match="Stale file handle"):
        Worker(batch, pipeline, stale).run()


def lost_worker(batch: Batch, key: str, *, is_old: bool) -> Path:
    """What a worker of another machine leaves that was killed; long ago, or now."""
    with open_store(batch) as store:
        store.owner = "elsewhere-1-abc"
        assert store.claim(key)
    claim = batch.out / CLAIMS / key
    if is_old:
        os.utime(claim, (claim.stat().st_mtime - 3600,) * 2)
    return claim


def test_the_video_of_a_lost_worker_is_made_by_another_and_counts_as_a_failed_attempt(make_batch, pipeline):
    batch = make_batch({"prompt": "a circle"})
    lost_worker(batch, batch.tasks[0].key, is_old=True)
    Worker(batch, pipeline).run()
    (receipt,), _ = lists(batch)
    assert receipt["attempt"] == 2 and left_over(batch) == []
    record = json.loads((batch.out / "failed" / f"{receipt['key']}.1.json").read_text())
    assert record["error"] == "WorkerLost" and "elsewhere-1-abc" in record["cause"]


def test_a_video_that_kills_its_workers_is_left_alone(make_batch, pipeline, backend):
    batch = make_batch({"prompt": "a circle"}, attempts=1)
    lost_worker(batch, batch.tasks[0].key, is_old=True)
    Worker(batch, pipeline).run()
    assert lists(batch)[0] == [] and not backend.fed


def test_a_worker_waits_for_what_others_are_making(make_batch, pipeline):
    batch = make_batch({"prompt": "a circle"})
    claim = lost_worker(batch, batch.tasks[0].key, is_old=False)
    waits = []

    def watch() -> None:
        waits.append(time.monotonic())
        if len(waits) == 3:
            claim.unlink()

    Worker(batch, pipeline, watch).run()
    assert len(waits) > 3 and lists(batch)[0][0]["attempt"] == 1


def test_a_worker_whose_claim_was_taken_gives_up_and_makes_no_second_file(make_batch, pipeline, backend, monkeypatch):
    batch = make_batch({"prompt": "a circle"}, lease=1)
    key, taken = batch.tasks[0].key, []

    def slow(state, **_):
        if not taken:
            taken.append(True)
            claim = batch.out / CLAIMS / key
            claim.unlink()
            claim.write_text("elsewhere-1-abc there")
            time.sleep(0.6)  # two renewals
            claim.unlink()
        return {"next_state": state, "velocity_peak": np.float32(1)}

    backend.graphs["denoiser"] = slow
    Worker(batch, pipeline).run()
    assert backend.log.count(("run", "denoiser")) == 1 + 3  # ended after the step; then made as a whole
    assert lists(batch)[0][0]["attempt"] == 1 and left_over(batch) == []


def test_a_worker_that_wakes_after_its_files_were_swept_goes_on(make_batch, pipeline, backend):
    batch = make_batch({"prompt": "a circle"})
    woken = []

    def decode(**fed):
        if not woken:
            woken.append(True)
            (batch.out / CLAIMS / batch.tasks[0].key).unlink()
            raise OutputError("the file is gone")
        return original(**fed)

    original = backend.graphs["vae_decoder_first"]
    backend.graphs["vae_decoder_first"] = decode
    Worker(batch, pipeline).run()
    assert lists(batch)[0][0]["attempt"] == 1 and woken


def test_a_video_without_receipt_is_kept_and_gets_the_receipt_of_its_own_bytes(make_batch, pipeline):
    batch = make_batch({"prompt": "a circle"})
    open_store(batch)
    (batch.out / batch.video(batch.tasks[0].key)).write_bytes(b"of a killed worker")
    Worker(batch, pipeline).run()
    (receipt,), _ = lists(batch)
    assert (batch.out / receipt["file"]).read_bytes() == b"of a killed worker"
    assert receipt["sha256"] == hashlib.sha256(b"of a killed worker").hexdigest() == receipt["content_sha256"]


def test_a_claim_that_outlived_its_video_is_removed(make_batch, pipeline):
    batch = make_batch({"prompt": "a circle"})
    Worker(batch, pipeline).run()
    lost_worker(batch, batch.tasks[0].key, is_old=False)
    Worker(batch, pipeline).run()
    assert left_over(batch) == []


def test_a_video_that_was_finished_since_the_look_is_not_made_again(make_batch, pipeline, backend, monkeypatch):
    batch = make_batch({"prompt": "a circle"})
    Worker(batch, pipeline).run()
    real, stale = w.keys_done, [set()]
    monkeypatch.setattr(w, "keys_done", lambda store: stale.pop() if stale else real(store))
    runs = len(backend.log)
    Worker(batch, pipeline).run()
    assert len(backend.log) == runs and not stale
    assert left_over(batch) == []


def test_a_folder_keeps_to_its_setting(make_batch, pipeline):
    batch = make_batch({"prompt": "a circle"})
    Worker(batch, pipeline).run()
    with pytest.raises(RequestError, match=r"was begun with ending '\.npy', not '\.gif'.*another folder"):
        open_store(replace(batch, setting={**batch.setting, "ending": ".gif"}))


def test_a_machine_that_would_make_other_videos_is_refused(make_batch, pipeline, tmp_path):
    batch = make_batch({"prompt": "a circle"})
    with pytest.raises(RequestError, match=r"must be made with mutoscope '0', not .* same versions"):
        Worker(replace(batch, setting={**batch.setting, "mutoscope": "0"}), pipeline).run()
    Worker(replace(batch, tasks=()), pipeline).run()


def test_work_opens_the_bundle_itself(make_batch, backend):
    batch = make_batch({"prompt": "a circle"})
    work(batch, verify=False)
    assert len(lists(batch)[0]) == 1


def test_a_tally_counts_what_the_folder_holds_and_the_pace_of_this_run(make_batch, pipeline: Pipeline):
    batch = make_batch({"prompt": "a circle", "repeat": 4}, attempts=1)
    seconds = iter([0.0, 0.0, 60.0])
    with open_store(batch) as store:
        counter = Counter(batch, store, lambda: next(seconds))
        first = counter.look()
        assert (first.total, first.done, first.videos_per_hour, first.left_s) == (4, 0, None, None)
        Worker(replace(batch, tasks=batch.tasks[:1]), pipeline).run()
        lost_worker(batch, batch.tasks[1].key, is_old=False)
        store.put_once(f"failed/{batch.tasks[2].key}.1.json", b"{}")
        now = counter.look()
    assert (now.done, now.failed, now.running, now.videos_per_hour, now.left_s) == (1, 1, 1, 60, 120)
    assert not now.complete
