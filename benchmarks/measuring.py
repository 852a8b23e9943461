"""Fresh processes that load once and run when they are told, and the tables that come of it.

Knows processes, seconds and bytes. Knows nothing of what is measured.

A benchmark is one module for both sides. Its main process starts a `Worker` for each thing it compares and lets them
run in turn, so that whatever slows the machine slows all alike. Called with `--worker`, the same module is that worker
and calls `serve`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .machine import describe

Answer = dict[str, Any]
Run = Callable[[], Answer]


class MeasurementError(Exception):
    """A worker failed; the message is its last error."""


class Worker:
    """A fresh process of `module`, which is given `spec` and has loaded and run once when the constructor returns.

    `first` is its first answer, with `load_s` (imports included) and `first_s`.
    """

    def __init__(self, module: str, spec: Mapping[str, Any]) -> None:
        command = [sys.executable, "-m", module, "--worker", json.dumps(spec)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.first = self._answer()

    def run(self) -> Answer:
        """Runs once more; what the run said, with `elapsed_s`, `peak_rss_bytes` and `rss_bytes`."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it ended meanwhile, which its answer tells
            self._process.stdin.write("run\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self._process.communicate()

    def _answer(self) -> Answer:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with exit code {self._process.wait()}"}
        if "error" in answer:
            self.close()
            raise MeasurementError(answer["error"])
        return dict(answer)


def serve(load: Callable[[], Run]) -> None:
    """The worker's side: loads, runs once, answers; then runs and answers for every line it is sent."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not end up between the answers
    try:
        started = time.perf_counter()
        run = load()
        load_s = time.perf_counter() - started
        first = _timed(run)
        answers.write(json.dumps(first | {"load_s": load_s, "first_s": first["elapsed_s"]}) + "\n")
        for _ in sys.stdin:
            answers.write(json.dumps(_timed(run)) + "\n")
    except Exception as error:
        message = (str(error).splitlines() or [""])[0]
        answers.write(json.dumps({"error": f"{type(error).__name__}: {message}"}) + "\n")


def measure_once(module: str, spec: Mapping[str, Any], runs: int = 0) -> tuple[Answer, list[Answer]]:
    """One worker for itself: its first answer, and those of `runs` more."""
    worker = Worker(module, spec)
    answers = [worker.run() for _ in range(runs)]
    worker.close()
    return worker.first, answers


def measure_in_turn(
    module: str, specs: Mapping[str, Mapping[str, Any]], rounds: int
) -> dict[str, tuple[Answer, list[Answer]] | MeasurementError]:
    """Loads one worker for each of `specs`, one after the other, then lets them run in turn: A B C, A B C, ..."""
    workers: dict[str, Worker] = {}
    results: dict[str, tuple[Answer, list[Answer]] | MeasurementError] = {}
    for name, spec in specs.items():
        print(f"loading {name}", file=sys.stderr)
        try:
            workers[name] = Worker(module, spec)
        except MeasurementError as error:
            results[name] = error
    answers: dict[str, list[Answer]] = {name: [] for name in workers}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for name, worker in list(workers.items()):
            try:
                answers[name].append(worker.run())
            except MeasurementError as error:
                results[name] = error
                del workers[name]
    for name, worker in workers.items():
        worker.close()
        results[name] = worker.first, answers[name]
    return {name: results[name] for name in specs}


def summary(first: Answer, answers: Sequence[Answer]) -> Answer:
    """The columns that all tables share; seconds to four digits."""
    seconds = [answer["elapsed_s"] for answer in answers]
    last = answers[-1] if answers else first
    return {
        "median_s": round(statistics.median(seconds), 4) if seconds else None,
        "min_s": round(min(seconds), 4) if seconds else None,
        "runs": len(seconds),
        "load_s": round(first["load_s"], 4),
        "first_s": round(first["first_s"], 4),
        "peak_rss_bytes": last["peak_rss_bytes"],
    }


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, pages of mapped files included."""
    # Linux carries `ru_maxrss` over from the process that started this one, so its own mark comes first.
    return _status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class PeakMemory:
    """The peaks of this process: of all its memory, and of what the system cannot take back (no file's pages)."""

    def __init__(self) -> None:
        self._anonymous = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._anonymous = max(self._anonymous, _status_bytes("RssAnon"))
            time.sleep(0.02)

    def so_far(self) -> Answer:
        return {"peak_rss_bytes": peak_rss_bytes(), "peak_anonymous_bytes": self._anonymous}

    def restart(self) -> None:
        """From here on the peaks count anew, from what is resident now. Linux only."""
        reset_peak_rss()
        self._anonymous = _status_bytes("RssAnon")


def reset_peak_rss() -> None:
    """From here on `peak_rss_bytes` counts anew, from what is resident now. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def arguments(description: str | None, default_rounds: int) -> argparse.ArgumentParser:
    """The flags that all these benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one run: shows that it works, no more")
    parser.add_argument("--rounds", type=int, default=default_rounds, help="measured runs of each, after a warm-up")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--checkpoint", type=Path, default=BUILTIN_CHECKPOINT, help="default: the built-in model's")
    parser.add_argument("--bundle", type=Path, default=BUILTIN_BUNDLE, help="its bundle; default: the built-in one")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    return parser


_REPOSITORY = Path(__file__).parents[1]
BUILTIN_CHECKPOINT = _REPOSITORY / "export/mutoscope_export/builtin/checkpoint"
BUILTIN_BUNDLE = _REPOSITORY / "runtime/mutoscope/builtin/bundle"


def write_result(output: Path | None, rows: Iterable[Answer], **facts: Any) -> None:
    """Prints the rows as a table and writes them with the machine and other facts."""
    rows = list(rows)
    print(table(rows))
    if output:
        load = {"load_average_1_5_15_minutes": os.getloadavg()}
        output.write_text(json.dumps({"machine": describe(), **load, **facts, "rows": rows}, indent=1) + "\n")


def table(rows: Sequence[Answer]) -> str:
    """The rows aligned for a terminal; bytes in MB, nested values left to the JSON."""
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, dict)))
    names.sort(key=lambda name: name == "note")  # last, for it is long
    cells = [[name.replace("_bytes", "_MB") for name in names]]
    cells += [[_cell(name, row.get(name)) for name in names] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in cells)  # fmt: skip


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name.endswith("_bytes"):
        return f"{value / 1e6:.1f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _timed(run: Run) -> Answer:
    started = time.perf_counter()
    answer = run()
    # A run that does more than what is measured gives its own `elapsed_s`.
    elapsed = {"elapsed_s": time.perf_counter() - started}
    return elapsed | answer | {"peak_rss_bytes": peak_rss_bytes(), "rss_bytes": _status_bytes("VmRSS")}


def _status_bytes(name: str) -> int:
    status = Path("/proc/self/status")
    found = re.search(rf"^{name}:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return 1024 * int(found.group(1)) if found else 0
