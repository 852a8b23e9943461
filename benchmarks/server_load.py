"""Loads `mutoscope serve` with many clients at once, and looks for wrong answers and for memory that grows.

    python -m benchmarks.server_load [--clients 200] [--minutes 12] [--output FILE.json]

Each client creates small videos of the built-in model, polls them, lists, reads events, downloads, cancels and deletes,
over its own connection on loopback. Right answers are those that are asked for: 429 where the queue is full, 404 for
what was deleted, 409 for content that is not there. Fails if any other error comes, or if the resident memory of the
server at the end is 5 % or more above that at the end of minute 2.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

from .reporting import write_result

TINY = {"prompt": "a red circle moving right on a black background", "height": 32, "width": 32, "num_frames": 1,
        "num_inference_steps": 1}  # fmt: skip
EXPECTED = {200, 404, 409, 429}
PAUSE_S = (0.2, 2.0)  # of a client between two requests
MOST_GROWTH = 0.05
QUEUE = 50
WARM_UP = 1 / 6  # of the time: minute 2 of 12


@dataclass
class Tally:
    """What came back."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)  # seconds since the start, bytes


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    arguments = parser.parse_args(argv)
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mutoscope", "serve", "--port", "0", "--data", folder, "--queue", str(QUEUE)]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [*command, "--free-disk", "1kB"], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            asyncio.run(_load(url, process.pid, arguments.clients, arguments.minutes * 60, tally))
            process.kill()
    seconds = arguments.minutes * 60
    warm = next(bytes for at, bytes in tally.memory if at >= seconds * WARM_UP)
    last = tally.memory[-1][1]
    row = {
        "clients": arguments.clients,
        "minutes": arguments.minutes,
        "requests": len(tally.seconds),
        "statuses": dict(sorted(tally.statuses.items())),
        "wrong": len(tally.wrong),
        "median_ms": round(statistics.median(tally.seconds) * 1000, 1),
        "p99_ms": round(statistics.quantiles(tally.seconds, n=100)[98] * 1000, 1),
        "rss_warm_bytes": warm,
        "rss_end_bytes": last,
        "growth": round(last / warm - 1, 4),
    }
    write_result(arguments.output, [row], wrong=tally.wrong[:20], memory=tally.memory)
    if tally.wrong or row["growth"] >= MOST_GROWTH:
        raise SystemExit("the server failed under load")


async def _load(url: str, pid: int, clients: int, seconds: float, tally: Tally) -> None:
    until = time.monotonic() + seconds
    watcher = asyncio.create_task(_watch(pid, seconds, tally))
    await asyncio.gather(*(_client(url, number, until, tally) for number in range(clients)))
    await watcher


async def _watch(pid: int, seconds: float, tally: Tally) -> None:
    server, started = psutil.Process(pid), time.monotonic()
    while (passed := time.monotonic() - started) < seconds:
        tally.memory.append((round(passed, 1), server.memory_info().rss))
        await asyncio.sleep(min(5.0, seconds / 30))
    tally.memory.append((round(passed, 1), server.memory_info().rss))


async def _client(url: str, number: int, until: float, tally: Tally) -> None:
    chance, mine = random.Random(number), list[str]()
    async with httpx2.AsyncClient(base_url=url, timeout=120) as http:
        while time.monotonic() < until:
            method, path, body = _next(chance, mine)
            started = time.monotonic()
            try:
                if path.endswith("/events"):
                    await _events(http, path)
                    status, content = 200, b""
                else:
                    answer = await http.request(method, path, json=body)
                    status, content = answer.status_code, answer.content
            except httpx2.HTTPError as error:
                status, content = 0, type(error).__name__.encode()
            tally.seconds.append(time.monotonic() - started)
            tally.statuses[f"{method} {status}"] += 1
            if status not in EXPECTED:
                tally.wrong.append(f"{method} {status} {content[:200]!r}")
            if body and status == 200:
                mine.append(json.loads(content)["id"])
            await asyncio.sleep(chance.uniform(*PAUSE_S))


async def _events(http: httpx2.AsyncClient, path: str) -> None:
    """The first two seconds of a stream."""
    try:
        async with asyncio.timeout(2), http.stream("GET", path) as answer:
            async for _ in answer.aiter_lines():
                pass
    except TimeoutError:
        return


def _next(chance: random.Random, mine: list[str]) -> tuple[str, str, Any]:
    what = chance.choice(["create", "look", "look", "look", "list", "content", "events", "cancel", "delete"])
    if what == "list":
        return "GET", "/v1/videos?limit=20", None
    if what == "create" or not mine:
        return "POST", "/v1/videos", TINY
    id = chance.choice(mine[-3:])
    if what == "delete":
        mine.remove(id)
        return "DELETE", f"/v1/videos/{id}", None
    if what == "cancel":
        return "POST", f"/v1/videos/{id}/cancel", None
    return "GET", f"/v1/videos/{id}" + {"look": "", "content": "/content", "events": "/events"}[what], None


if __name__ == "__main__":
    main()
