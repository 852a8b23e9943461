"""Kills `mutoscope serve` at random moments, and looks whether a video was lost, doubled or left half written.

    python -m benchmarks.server_kills [--rounds 200] [--workers N] [--output FILE.json]

Each round starts the server on the same data folder, asks for a few small videos of the built-in model, deletes or
cancels some, and sends SIGKILL after a random part of a second. With further workers (`mutoscope work`), one of them is
killed in about every second round, too; they outlive the server. After the last round a server runs until nothing
waits. Every video that was accepted, and that nobody deleted, must then have ended once; each file must have the hash
that its row names; and nothing else may lie in the folder. Fails if one of these does not hold.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from .reporting import write_result

PROMPT = "a red circle moving right on a black background"
TINY = {"prompt": PROMPT, "height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
MOST_SECONDS = 0.8  # from the first request of a round to its kill
PATIENCE_S = 600


@dataclass
class Ledger:
    """What clients know: which videos were accepted, and what was done to them."""

    accepted: list[str] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)  # answered; a kill may have come before any other answer
    unsure: set[str] = field(default_factory=set)  # asked to be deleted or cancelled, without an answer
    cancelled: set[str] = field(default_factory=set)
    finished: dict[str, float] = field(default_factory=dict)  # by id, when it was seen to have ended


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="how often the server is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of what is asked for")
    parser.add_argument("--workers", type=int, default=0, help="how many processes of `mutoscope work` share the work")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    arguments = parser.parse_args(argv)
    chance, ledger, started = random.Random(arguments.seed), Ledger(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Crew(Path(folder), arguments.workers) as crew:
        for number in range(arguments.rounds):
            _round(Path(folder), ledger, chance, number, crew)
        with serving(Path(folder)) as (url, _):
            shown = _when_all_ended(url)
        crew.end()
        faults = _faults(Path(folder), ledger, shown)
    attempts = Counter(each["attempts"] for each in shown.values())
    row = {
        "kills": arguments.rounds,
        "workers": arguments.workers,
        "kills_of_workers": crew.killed,
        "accepted": len(ledger.accepted),
        "states": dict(Counter(each["state"] for each in shown.values())),
        "deleted": len(set(ledger.accepted) - set(shown)),
        "begun_more_than_once": sum(count for tried, count in attempts.items() if tried > 1),
        "most_attempts": max(attempts, default=0),
        "faults": len(faults),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_result(arguments.output, [row], faults=faults)
    if faults:
        raise SystemExit("\n".join(faults))


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server that listens; it is killed at the end."""
    command = [sys.executable, "-m", "mutoscope", "serve", "--port", "0", "--data", str(folder), "--free-disk", "1kB"]
    command += ["--attempts", "1000", "--queue", "10000"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"], process
        finally:
            process.kill()


class Crew:
    """Processes of `mutoscope work` on a data folder; killed at the end."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.killed = 0
        self._command = [sys.executable, "-m", "mutoscope", "work", str(folder), "--threads", "1"]
        self._workers, self._running = workers, list[subprocess.Popen[bytes]]()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def fill(self) -> None:
        """Starts those that are missing."""
        self._running = [each for each in self._running if each.poll() is None]
        while len(self._running) < self._workers:
            self._running.append(subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def kill_one(self, chance: random.Random) -> None:
        """In about half of all calls."""
        if self._running and chance.random() < 0.5:
            chance.choice(self._running).kill()
            self.killed += 1

    def end(self) -> None:
        """Kills all."""
        for each in self._running:
            each.kill()
            each.wait()
        self._running.clear()


def ask(url: str, method: str, path: str, body: Any = None) -> Any:
    """The answer, or `None` where the server died over it."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(url + path, data, {"content-type": "application/json"}, method=method)
    with suppress(URLError, HTTPException, OSError, ValueError), urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())
    return None


def _round(folder: Path, ledger: Ledger, chance: random.Random, number: int, crew: Crew) -> None:
    with serving(folder) as (url, process):
        crew.fill()
        for _ in range(chance.randrange(3)):
            made = ask(url, "POST", "/v1/videos", TINY | {"seed": number})
            if made is not None:
                ledger.accepted.append(made["id"])
        killer = subprocess.Popen(["sh", "-c", f"sleep {chance.uniform(0, MOST_SECONDS):.3f}; kill -9 {process.pid}"])
        crew_at = time.monotonic() + chance.uniform(0, MOST_SECONDS)
        while process.poll() is None:
            if time.monotonic() > crew_at:
                crew.kill_one(chance)
                crew_at = float("inf")
            _disturb(url, ledger, chance)
            time.sleep(0.05)
        killer.wait()


def _disturb(url: str, ledger: Ledger, chance: random.Random) -> None:
    """Looks, cancels, deletes, or asks for one more."""
    what = chance.choice(["look", "look", "look", "cancel", "delete", "create"])
    if what == "create":
        if (made := ask(url, "POST", "/v1/videos", TINY)) is not None:
            ledger.accepted.append(made["id"])
    elif what == "look" or not ledger.accepted:
        for each in (ask(url, "GET", "/v1/videos?limit=100&state=completed") or {"data": []})["data"]:
            ledger.finished.setdefault(each["id"], each["finished_at"])
    elif chance.random() < 0.2:
        id = chance.choice(ledger.accepted[-5:])
        path = f"/v1/videos/{id}"
        answer = ask(url, "POST", f"{path}/cancel") if what == "cancel" else ask(url, "DELETE", path)
        if answer is None:
            ledger.unsure.add(id)
        elif what == "delete":
            ledger.deleted.add(id)
        elif answer["state"] == "cancelled":
            ledger.cancelled.add(id)


def _when_all_ended(url: str) -> dict[str, Any]:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        counts = ask(url, "GET", "/v1/queue")["counts"]
        if counts["queued"] + counts["running"] == 0:
            return _all(url)
        time.sleep(0.2)
    raise SystemExit(f"something still waits after {PATIENCE_S} s")


def _all(url: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    after = ""
    while True:
        page = ask(url, "GET", f"/v1/videos?limit=100{after}")
        found |= {each["id"]: each for each in page["data"]}
        if not page["has_more"]:
            return found
        after = f"&after={page['last_id']}"


def _faults(folder: Path, ledger: Ledger, shown: dict[str, Any]) -> list[str]:
    gone = ledger.deleted | ledger.unsure
    faults = [f"{id} was accepted and is lost" for id in ledger.accepted if id not in shown and id not in gone]
    faults += [f"{id} was deleted and is there" for id in ledger.deleted if id in shown]
    for id, each in shown.items():
        if each["state"] not in ("completed", "cancelled"):
            faults.append(f"{id} is {each['state']}: {each['error']}")
        if each["state"] == "cancelled" and id not in ledger.cancelled | ledger.unsure:
            faults.append(f"{id} was cancelled by nobody")
        if each["state"] != "cancelled" and id in ledger.cancelled:
            faults.append(f"{id} was cancelled and is {each['state']}")
        if ledger.finished.get(id, each["finished_at"]) != each["finished_at"]:
            faults.append(f"{id} was made twice")
    whole = {id: each["sha256"] for id, each in shown.items() if each["state"] == "completed"}
    files = {path.relative_to(folder / "videos"): path for path in (folder / "videos").rglob("*") if path.is_file()}
    faults += [f"{name} belongs to no video" for name in files if str(name.parent) not in whole]
    for id, sha256 in whole.items():
        file = files.get(Path(id) / "video.mp4")
        if file is None or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            faults.append(f"the file of {id} is missing or another")
    connection = sqlite3.connect(folder / "jobs.sqlite3")
    [[integrity]] = connection.execute("PRAGMA integrity_check").fetchall()
    connection.close()
    return faults if integrity == "ok" else [*faults, f"the table is damaged: {integrity}"]


if __name__ == "__main__":
    main()
