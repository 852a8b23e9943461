"""Time of `mutoscope batch` beside a loop of `mutoscope generate` over the same requests, in one run.

    python -m benchmarks.batch_loop --output benchmarks/results/batch_loop.json

Each round runs both sides, the first of them in turn, so that what else the machine does falls on both. The videos are
those of the built-in model. Some prompts have several seeds, as in bulk they do. The loop starts a process for each
video, because a script that calls the command does. After each round, the frames of both sides are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from .reporting import write_result

PROMPTS = ("a red circle moving right on a black background", "a blue square growing on a gray background")
COMMAND = (sys.executable, "-m", "mutoscope")


def requests(seeds: int) -> list[dict[str, Any]]:
    """Each prompt with so many seeds."""
    return [{"prompt": prompt, "seed": seed} for prompt in PROMPTS for seed in range(seeds)]


def loop(jobs: list[dict[str, Any]], folder: Path) -> float:
    """Seconds for one process a video."""
    started = time.perf_counter()
    for number, job in enumerate(jobs):
        _run("generate", job["prompt"], "--seed", str(job["seed"]), "-o", str(folder / f"{number}.npy"))
    return time.perf_counter() - started


def batch(jobs: list[dict[str, Any]], folder: Path) -> float:
    """Seconds for one command for all."""
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(job) + "\n" for job in jobs), "utf-8")
    started = time.perf_counter()
    _run("batch", str(path), str(folder / "out"), "--ending", ".npy")
    return time.perf_counter() - started


def compare(folder: Path) -> None:
    """
    Raises:
        SystemExit: the two sides made different frames.
    """
    for number, line in enumerate((folder / "out/receipts.jsonl").read_text("utf-8").splitlines()):
        ours = np.load(folder / "out" / json.loads(line)["file"])
        if not np.array_equal(ours, np.load(folder / f"{number}.npy")):
            raise SystemExit(f"video {number} differs between the two sides")


def _run(*arguments: str) -> None:
    subprocess.run([*COMMAND, *arguments], check=True, capture_output=True)


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=4, help="of each of the two prompts")
    parser.add_argument("--quick", action="store_true", help="one round of two videos: shows that it works, no more")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    given = parser.parse_args()
    rounds, seeds = (1, 1) if given.quick else (given.rounds, given.seeds)
    jobs = requests(seeds)
    seconds: dict[str, list[float]] = {"loop": [], "batch": []}
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            sides = [("loop", loop), ("batch", batch)]
            for side, run in sides if number % 2 == 0 else reversed(sides):
                seconds[side].append(run(jobs, Path(name)))
            compare(Path(name))
    rows = [
        {
            "side": side,
            "videos": len(jobs),
            "rounds": rounds,
            "median_s": round(statistics.median(taken), 2),
            "min_s": round(min(taken), 2),
            "max_s": round(max(taken), 2),
            "videos_per_hour": round(3600 * len(jobs) / statistics.median(taken)),
        }
        for side, taken in seconds.items()
    ]
    write_result(given.output, rows, note="the two sides in turn, on a machine whose cores other programs used too")


if __name__ == "__main__":
    main()
