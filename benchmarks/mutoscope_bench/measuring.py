"""Fresh processes that load once and run when they are told.

Knows processes, seconds and bytes. Knows nothing of what is measured.

The main process starts a `Worker` for each thing it compares and lets them run in turn, so that whatever slows the
machine slows all alike. A module called with `--worker` is such a worker, and calls `serve`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil
from mutoscope_engines.system.child_python import child_python
from mutoscope_engines.system.machine import peak_memory_bytes
from mutoscope_engines.telemetry import OPT_OUT

Answer = dict[str, Any]
Run = Callable[[], Answer]
Way = Callable[[], tuple[float, str]]  # seconds, and the hash of what was made


class MeasurementError(Exception):
    """A worker failed; the message is its last error."""


def taking_turns(ways: Mapping[str, Way], unlike: str) -> Callable[[], tuple[dict[str, float], str]]:
    """What goes all of the ways in each run, and changes from run to run which is first.

    It gives the seconds of each, and the hash of what they made.

    Args:
        ways: by name.
        unlike: the message where they did not make the same.

    Raises:
        MeasurementError: in a run, where they did not make the same.
    """
    names = list(ways)

    def run() -> tuple[dict[str, float], str]:
        taken = {name: ways[name]() for name in names}
        names.reverse()
        sha256, *others = {made for _, made in taken.values()}
        if others:
            raise MeasurementError(unlike)
        return {name: seconds for name, (seconds, _) in taken.items()}, sha256

    return run


class Worker:
    """A fresh process of `module`, which is given `spec` and has loaded and run once when the constructor returns.

    `first` is its first answer, with `prepare_s`, `load_s` and `first_s`.

    Args:
        log: takes what the process prints; its last line is part of the error of a process that ends.
        on_start: told the id of the process before it has loaded.
    """

    def __init__(
        self,
        module: str,
        spec: Mapping[str, Any],
        *,
        log: IO[bytes] | None = None,
        on_start: Callable[[int], object] = lambda pid: None,
    ) -> None:
        command = child_python("-m", module, "--worker", json.dumps(spec))
        self._log = log
        self._process = subprocess.Popen(
            command,
            env=os.environ | OPT_OUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        on_start(self._process.pid)
        self.first = self._answer()

    def run(self) -> Answer:
        """Runs once more; what the run said, with `elapsed_s`, `peak_rss_bytes` and `rss_bytes`."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it ended meanwhile, which its answer tells
            self._process.stdin.write("run\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Lets it end. Closing it again does nothing."""
        if self._process.stdout is not None and not self._process.stdout.closed:
            self._process.communicate()

    def kill(self) -> None:
        """Ends it whatever it does."""
        self._process.kill()
        self.close()

    def _answer(self) -> Answer:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = (
            json.loads(line) if line else {"error": f"ended with exit code {self._process.wait()}{self._last_words()}"}
        )
        if "error" in answer:
            self.close()
            raise MeasurementError(answer["error"])
        return dict(answer)

    def _last_words(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return f": {lines[-1].strip()}" if lines else ""


def serve(load: Callable[[], Run], prepare: Callable[[], object] = lambda: None) -> None:
    """The worker's side: loads, runs once, answers; then runs and answers for every line it is sent.

    Args:
        prepare: what comes before, such as importing libraries, and is not part of loading.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not end up between the answers
    try:
        begun = time.perf_counter()
        prepare()
        started = time.perf_counter()
        run = load()
        load_s = time.perf_counter() - started
        first = _timed(run)
        times = {"prepare_s": started - begun, "load_s": load_s, "first_s": first["elapsed_s"]}
        answers.write(json.dumps(first | times) + "\n")
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


class PeakMemory:
    """The peaks of this process: of all its memory, and of what the system cannot take back (no file's pages)."""

    def __init__(self) -> None:
        self._anonymous = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._anonymous = max(self._anonymous, _anonymous_bytes())
            time.sleep(0.02)

    def so_far(self) -> Answer:
        """Both peaks in bytes, `peak_rss_bytes` and `peak_anonymous_bytes`."""
        return {"peak_rss_bytes": peak_memory_bytes(), "peak_anonymous_bytes": self._anonymous}

    def restart(self) -> None:
        """From here on the peaks count anew, from what is resident now. Linux only."""
        reset_peak_rss()
        self._anonymous = _anonymous_bytes()


def reset_peak_rss() -> None:
    """From here on `peak_memory_bytes` counts anew, from what is resident now. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def _timed(run: Run) -> Answer:
    started = time.perf_counter()
    answer = run()
    # A run that does more than what is measured gives its own `elapsed_s`.
    elapsed = {"elapsed_s": time.perf_counter() - started}
    return elapsed | answer | {"peak_rss_bytes": peak_memory_bytes(), "rss_bytes": _rss_bytes()}


def _rss_bytes() -> int:
    return psutil.Process().memory_info().rss


def _anonymous_bytes() -> int:
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", memory.rss)  # only Linux tells; what is shared there are files' pages
