"""Kills workers of a batch at random moments, a thousand times, and looks at what is left in their folder.

    python -m benchmarks.batch_kills --kills 1000 --output benchmarks/results/batch_kills.json

Each round is a new folder of small clips by the built-in model. Two machines work on it: groups of processes that see
only their own (`unshare --pid`), so that a lost worker of the other is known by its lease alone; the clock of the
second is an hour ahead (`faketime`). Each machine kills its workers with SIGKILL, each after a random time, and starts
others. After the round this checks: every receipt that was ever seen is still there, with the same video; each video is
there once and is what its receipt says; receipts.jsonl is in the order of the jobs; and once the leases have run out,
the same command does nothing and leaves no claim and no unfinished file. Needs root, Linux and faketime.

`--quick` is one round with one machine and a few kills.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import pickle
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutoscope import OutputOptions, Pipeline, RuntimeOptions
from mutoscope.bulk.jobs import read_jobs
from mutoscope.bulk.options import BatchOptions
from mutoscope.bulk.task import Batch
from mutoscope.bulk.worker import Worker
from mutoscope.bundle.bundle import Bundle

from .reporting import BUILTIN_BUNDLE, write_result

Keep = Callable[[list[dict[str, Any]]], None]  # writes the rounds so far

PROMPTS = ("a red circle moving right on a black background", "a blue square growing on a gray background")
SMALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1}
LEASE_S = 2
AHEAD = "+3600s"
MEAN_LIFE_S = 0.4  # of a worker, from its first look for a video; a clip takes about a tenth of a second
WORKERS = 2  # of each machine


def write_jobs(path: Path, count: int) -> None:
    """So many clips, in two sizes and with two prompts."""
    jobs = [
        {"id": f"clip {number}", "prompt": PROMPTS[number % 2], "seed": number}
        | SMALL
        | {"width": 32 << number // 2 % 2}
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(job) + "\n" for job in jobs), "utf-8")


def make_batch(jobs: Path, out: Path) -> Batch:
    """The batch of a file of jobs, for one thread a worker, never giving up on a clip."""
    runtime, output = RuntimeOptions(threads=1, backend="onnxruntime"), OutputOptions()
    options = BatchOptions(attempts=1_000_000, lease=LEASE_S)
    with Pipeline.load(threads=1, backend="onnxruntime") as pipeline:
        checked = read_jobs(jobs, pipeline, options.ending, output)
    return Batch(out=out, tasks=checked.tasks, bundle=BUILTIN_BUNDLE, setting=checked.setting, runtime=runtime,
                 options=options)  # fmt: skip


def machine(batch: Batch, kills: int, seed: int) -> int:
    """Runs workers and kills them until so many were killed, then lets them finish. Returns how many were."""
    chance, killed = random.Random(seed), 0
    ready: dict[int, int] = {}
    ends: dict[int, float] = {}
    finished = False
    while not finished or ends:
        while len(ends) < WORKERS and not finished:
            process, reading = _forked(batch)
            ready[process], ends[process] = reading, math.inf
        time.sleep(0.005)
        for process in list(ends):
            if ends[process] == math.inf and select.select([ready[process]], [], [], 0)[0]:
                ends[process] = time.monotonic() + chance.expovariate(1 / MEAN_LIFE_S)
        for process, end in list(ends.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                del ends[process]
                os.close(ready.pop(process))
                finished = finished or status == 0
            elif killed < kills and time.monotonic() > end and not finished:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                del ends[process]
                os.close(ready.pop(process))
                killed += 1
    return killed


def _forked(batch: Batch) -> tuple[int, int]:
    """A worker in a process of its own, and a pipe that can be read once it looks for its first video.

    A fork, as starting Python anew takes longer than most of them live.
    """
    reading, writing = os.pipe()
    if process := os.fork():
        os.close(writing)
        return process, reading
    code = 1
    try:
        with Pipeline(Bundle.open(batch.bundle, verify=False), batch.runtime) as pipeline:
            os.write(writing, b".")
            Worker(batch, pipeline).run()
        code = 0
    finally:
        os._exit(code)


@dataclass
class Seen:
    """Receipts and videos that were there at one time, with the hashes of the videos then."""

    out: Path
    videos: dict[str, str]

    def look(self) -> None:
        """Notes those that are new."""
        for path in (self.out / "receipts").glob("*.json"):
            if path.stem not in self.videos:
                self.videos[path.stem] = hashlib.sha256(
                    (self.out / "videos" / f"{path.stem}.mp4").read_bytes()
                ).hexdigest()


def check(jobs: Path, out: Path, seen: Seen) -> dict[str, Any]:
    """What is wrong with a finished folder, counted; the same command has run again in it."""
    again = [sys.executable, "-m", "mutoscope", "batch", str(jobs), str(out), "--threads", "1", "--backend",
             "onnxruntime", "--attempts", "1000000", "--lease", str(LEASE_S)]  # fmt: skip
    time.sleep(LEASE_S + 1)
    done = subprocess.run(again, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in (out / "receipts.jsonl").read_text("utf-8").splitlines()]
    wanted = [json.loads(line)["id"] for line in jobs.read_text("utf-8").splitlines()]
    hashes = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in (out / "videos").iterdir()}
    attempts = sorted(line["attempt"] for line in lines)
    return {
        "videos": len(wanted),
        "lost": sum(hashes.get(key) != sha256 for key, sha256 in seen.videos.items()) + len(wanted) - len(hashes),
        "doubled": sum(count > 1 for count in Counter(line["key"] for line in lines).values()),
        "unlike_their_receipt": sum(hashes.get(line["key"]) != line["sha256"] for line in lines),
        "out_of_order": int([line["id"] for line in lines] != wanted),
        "left_over": sum(len(list((out / folder).iterdir())) for folder in ("making", "claims")),
        "rerun_did_something": int("nothing to do" not in done.stderr),
        "kills_with_a_claim": len(list((out / "failed").iterdir())),
        "most_attempts": attempts[-1],
    }


FAULTS = ("lost", "doubled", "unlike_their_receipt", "out_of_order", "left_over", "rerun_did_something")


def run_round(folder: Path, count: int, kills: int, seed: int, *, two: bool) -> dict[str, Any]:
    """One folder of clips, with as many kills shared by its machines, and what was found in it."""
    jobs, out = folder / "jobs.jsonl", folder / "out"
    write_jobs(jobs, count)
    (folder / "batch.pickle").write_bytes(pickle.dumps(make_batch(jobs, out)))
    apart = ["unshare", "--pid", "--fork", "--mount-proc"]
    prefixes: list[list[str]] = [apart, [*apart, "faketime", "-f", AHEAD]] if two else [[]]
    command = [sys.executable, "-m", __spec__.name, "--machine", str(folder), "--kills", str(kills // len(prefixes))]
    started = time.monotonic()
    environment = {**os.environ, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}  # which has no date, and is for waiting
    running = [
        subprocess.Popen(
            [*prefix, *command, "--seed", str(seed + number)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for number, prefix in enumerate(prefixes)
    ]
    seen = Seen(out, {})
    while any(each.poll() is None for each in running):
        seen.look()
        time.sleep(0.1)
    said = [json.loads(each.communicate()[0]) for each in running]
    row = {"kills": sum(each["kills"] for each in said), "clocks": [each["clock"] - time.time() for each in said]}
    return row | {"seconds": round(time.monotonic() - started, 1)} | check(jobs, out, seen)


def run(
    total: int, count: int, per_round: int, seed: int, keep: Callable[[list[dict[str, Any]]], None], *, two: bool
) -> None:
    """Round after round until workers were killed so many times; stops at the first fault."""
    rows: list[dict[str, Any]] = []
    while sum(row["kills"] for row in rows) < total:
        with tempfile.TemporaryDirectory() as name:
            rows.append(run_round(Path(name), count, per_round, seed + 10 * len(rows), two=two))
        keep(rows)
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        if any(rows[-1][fault] for fault in FAULTS):
            raise SystemExit(f"round {len(rows)} has a fault: {rows[-1]}")


def _sleep(seconds: float) -> None:
    select.select([], [], [], seconds)


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--videos", type=int, default=40, help="of each round")
    parser.add_argument("--kills-per-round", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one round of six clips with four kills, on one machine")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    parser.add_argument("--machine", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.machine:
        # libfaketime gets the time at which `time.sleep` is to end wrong now and then (EINVAL)
        time.sleep = _sleep
        batch = pickle.loads((given.machine / "batch.pickle").read_bytes())
        clock = time.time()
        print(json.dumps({"clock": clock, "kills": machine(batch, given.kills, given.seed)}))
        return
    if given.quick:
        run(1, 6, 4, given.seed, lambda rows: None, two=False)
        return
    if not all(map(shutil.which, ("faketime", "unshare"))):
        parser.error("needs faketime and unshare: apt-get install faketime util-linux")

    def keep(rows: list[dict[str, Any]]) -> None:
        write_result(given.output, rows, kills=sum(row["kills"] for row in rows), lease_s=LEASE_S, ahead=AHEAD,
                     mean_life_s=MEAN_LIFE_S, workers=2 * WORKERS, request=SMALL)  # fmt: skip

    run(given.kills, given.videos, given.kills_per_round, given.seed, keep, two=True)


if __name__ == "__main__":
    main()
