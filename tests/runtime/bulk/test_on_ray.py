from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from mutoscope.builtin import bundle_path
from mutoscope.bulk import on_ray
from mutoscope.bulk.on_ray import WorkerActor, WorkerError, assignment_of, run_on_ray, supervise, threads_each
from mutoscope.bulk.options import BatchOptions
from mutoscope.bulk.processes import WorkersLostError
from mutoscope.bulk.store import FolderStore
from mutoscope.bulk.task import Batch
from mutoscope.bulk.worker import open_store
from mutoscope.cli import main
from mutoscope.errors import BackendUnavailableError, RequestError
from mutoscope.request import RuntimeOptions

LOOPBACK = 'ip link set lo up && exec "$@"'
SMALL = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 4}
VIDEOS = 40


def a_batch(out: Path, **options: Any) -> Batch:
    setting = {"backend": "onnxruntime"}
    return Batch(out=out, tasks=(), bundle=bundle_path(), setting=setting, options=BatchOptions(**options))


class Played:
    """An actor that says what it is told, and the same for ever at the end."""

    def __init__(self, *says: bool | Exception | None) -> None:
        self.says = list(says)
        self.ends: list[float] = []

    def finished(self) -> bool | None:
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if isinstance(said, Exception):
            raise said
        return said

    def end(self, within_s: float) -> None:
        self.ends.append(within_s)


def played(actors: list[Played]) -> Iterator[Played]:
    yield from actors
    raise AssertionError("more actors were started than were lost")


def supervised(start: Callable[[], Played], batch: Batch, watch: Callable[[], None] = lambda: None) -> None:
    with open_store(batch) as store:
        supervise(start, batch, store, watch)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "LOOK_EVERY_S", 0.0)


@pytest.mark.usefixtures("at_once")
def test_a_lost_actor_is_replaced_and_the_first_that_finishes_ends_those_that_wait(tmp_path: Path) -> None:
    waiting, lost, new = Played(None), Played(None, False), Played(None, None, True)
    started = played([waiting, lost, new])
    supervised(lambda: next(started), a_batch(tmp_path, workers=2))
    assert [len(actor.ends) for actor in (waiting, lost, new)] == [1, 0, 1]


@pytest.mark.usefixtures("at_once")
def test_actors_that_are_lost_again_and_again_end_the_batch(tmp_path: Path) -> None:
    with pytest.raises(WorkersLostError, match="6 workers ended unexpectedly; see the logs of the cluster"):
        supervised(lambda: Played(False), a_batch(tmp_path, workers=2))


@pytest.mark.usefixtures("at_once")
def test_lost_actors_are_counted_anew_after_each_attempt_at_a_video(tmp_path: Path) -> None:
    batch = a_batch(tmp_path, workers=2)
    attempts = iter(range(30))

    def an_attempt() -> None:
        if (number := next(attempts)) == 20:
            raise KeyboardInterrupt
        (tmp_path / "failed" / f"k.{number}.json").touch()

    with pytest.raises(KeyboardInterrupt):
        supervised(lambda: Played(False), batch, an_attempt)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("error", [WorkerError("on there: no bundle", 3), KeyboardInterrupt()])
def test_an_error_of_one_actor_or_an_interrupt_stops_all(error: Any, tmp_path: Path) -> None:
    def watch() -> None:
        if isinstance(error, KeyboardInterrupt):
            raise error

    actors = [Played(None), Played(error)]
    started = played(actors)
    with pytest.raises(type(error)):
        supervised(lambda: next(started), a_batch(tmp_path, workers=2), watch)
    assert [len(actor.ends) for actor in actors] == [1, 1]


@pytest.mark.parametrize(
    ("cpus", "workers", "threads"),
    [([16, 16], 2, 16), ([16, 16], 3, 8), ([16, 4], 2, 8), ([16, 4], 5, 4), ([1, 1], 2, 1), ([0, 8], 1, 8)],
)
def test_actors_take_as_many_threads_as_leave_a_place_for_each(
    cpus: list[int], workers: int, threads: int, tmp_path: Path
) -> None:
    assert threads_each(cpus, a_batch(tmp_path, workers=workers, ray="auto")) == threads


def test_more_actors_than_cpus_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="workers=3 is more than the cluster has CPUs, 2"):
        threads_each([1, 1], a_batch(tmp_path, workers=3, ray="auto"))


def test_an_actor_refuses_a_folder_that_is_another_than_that_of_the_batch(tmp_path: Path) -> None:
    batch = a_batch(tmp_path / "out")
    with open_store(batch):
        assignment = assignment_of(batch)
    shutil.rmtree(batch.out)
    refusal = WorkerActor().work(assignment)
    assert refusal is not None and refusal.exit_code == 2
    assert f"{batch.out} is not the folder of this batch here" in refusal.message
    batch.out.mkdir()
    (batch.out / "setting.json").touch()
    os.utime(batch.out / "setting.json", (1, 1))
    assert WorkerActor().work(assignment) is not None


def test_an_actor_with_nothing_left_to_do_ends_and_shares_the_memory_of_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Batch] = []
    monkeypatch.setattr(on_ray, "work", lambda batch, watch: ran.append(batch))
    monkeypatch.setattr(on_ray, "usable_cores", lambda: 4)
    batch = replace(a_batch(tmp_path), runtime=RuntimeOptions(threads=1))
    with open_store(batch):
        assert WorkerActor().work(assignment_of(batch)) is None
        limited = replace(batch, runtime=replace(batch.runtime, memory_limit=10**9))
        assert WorkerActor().work(assignment_of(limited)) is None
    whole = on_ray.shared(on_ray.Pipeline.load(threads=1).settled, 1).memory_limit or 0
    assert ran[0].runtime.memory_limit == pytest.approx(whole / 4, rel=0.1)  # what is free changes meanwhile
    assert ran[1].runtime.memory_limit == 10**9


def test_an_actor_that_is_asked_to_stop_ends_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(batch: Batch, watch: Any) -> None:
        actor.stop()
        while True:
            watch()

    actor = WorkerActor()
    monkeypatch.setattr(on_ray, "work", endless)
    batch = a_batch(tmp_path)
    with open_store(batch):
        assert actor.work(assignment_of(batch)) is None


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'mutoscope\[ray\]'"):
        run_on_ray(a_batch(tmp_path, ray="auto"), FolderStore(tmp_path, 60), lambda: None)


@pytest.mark.parametrize("address", ["10.0.0.1", "ray://10.0.0.1:10001", "local", ":1", "127.0.0.1:1"])
def test_an_address_where_no_cluster_answers_is_refused_at_once(address: str) -> None:
    with pytest.raises(RequestError, match="head node"):
        on_ray.refuse_unreachable(address)


@pytest.mark.parametrize(("threads", "needs_gpu"), [(3, False), (1, True)])
def test_actors_for_which_no_machine_is_large_enough_are_refused(threads: int, needs_gpu: bool) -> None:
    on_ray.refuse_without_place([{"CPU": 2.0}], 2, False)
    with pytest.raises(RequestError, match="no machine of the cluster has"):
        on_ray.refuse_without_place([{"CPU": 2.0}], threads, needs_gpu)


def test_more_workers_than_cores_need_a_cluster() -> None:
    BatchOptions(workers=100_000, ray="auto").check()
    with pytest.raises(RequestError):
        BatchOptions(workers=100_000).check()


def test_a_batch_on_two_nodes_survives_ctrl_c_a_killed_actor_and_a_removed_node(tmp_path: Path) -> None:
    if find_spec("ray") is None:
        pytest.skip("ray is not installed")
    network = ["unshare", "--net", "sh", "-ec", LOOPBACK, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*network, "true"], capture_output=True).returncode:
        pytest.skip("a network namespace takes root, unshare and ip (Debian: apt-get install util-linux iproute2)")
    jobs, out = tmp_path / "jobs.jsonl", tmp_path / "out"
    lines = [SMALL | {"prompt": "a red circle", "id": f"job {seed}", "seed": seed} for seed in range(VIDEOS)]
    jobs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    program = [sys.executable, str(Path(__file__).with_name("cluster.py")), str(jobs), str(out)]
    done = subprocess.run([*network, *program], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["interrupted"]["code"], found["interrupted"]["left"]) == (130, [])
    assert found["interrupted"]["errors"].endswith("mutoscope: interrupted\n")  # after what Ray misses in this network
    assert found["code"] == 0, found["errors"]
    told = Counter(json.loads(line).get("id") for line in found["output"].splitlines())
    receipts = [json.loads(line) for line in (out / "receipts.jsonl").read_text().splitlines()]
    assert [receipt["id"] for receipt in receipts] == [line["id"] for line in lines]
    assert all(told[line["id"]] <= 1 for line in lines)  # not those that were finished before
    assert {path.name for path in (out / "videos").iterdir()} == {Path(each["file"]).name for each in receipts}
    assert len({receipt["file"] for receipt in receipts}) == VIDEOS
    assert [*(out / "claims").iterdir(), *(out / "making").iterdir()] == []
    assert main(["batch", str(jobs), str(out), "--quiet"]) == 0
