"""Starts the process of a variant, and fresh processes that only import or only load.

Knows processes and files. Knows nothing of what their answers mean.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutoscope_engines.system.child_python import child_python
from mutoscope_engines.telemetry import OPT_OUT

from . import page_cache
from .implementation import Variant, Work
from .implementations import PEERS, load_implementation
from .measuring import MeasurementError, Worker
from .memory_trace import MemoryTrace

WORKER = "mutoscope_bench.worker"
IMPORTS, IMPORTS_BUDGET_S = 3, 10.0  # processes that import, as many as fit


@dataclass(frozen=True)
class Processes:
    """The processes of one case, which all do the same work; their outputs go into one folder."""

    work: Work
    folder: Path

    def result_file(self, variant: Variant) -> Path:
        """Where the process of a variant writes its output, `.npy`."""
        return self.folder / f"{variant.implementation}-{variant.precision}.npy".replace(" ", "-")

    @contextmanager
    def start(self, variant: Variant) -> Iterator[tuple[Worker, MemoryTrace, int]]:
        """A process that has loaded and run once, its memory meanwhile, and its id; it ends with the `with`.

        Raises:
            MeasurementError: it failed; its last words.
        """
        trace, pids = MemoryTrace(), []

        def on_start(pid: int) -> None:
            pids.append(pid)
            trace.start(pid)

        with tempfile.TemporaryFile() as log:
            try:
                worker = Worker(WORKER, self._spec(variant), log=log, on_start=on_start)
            finally:
                trace.stop()
            try:
                yield worker, trace, pids[0]
                worker.close()
            finally:
                worker.kill()

    def cold_load(self, variant: Variant) -> tuple[float | None, str | None]:
        """Seconds of loading with nothing in the page cache, and what kept it from being cold."""
        reads = self.work.bundle if load_implementation(variant.implementation).files_of == "bundle" else None
        note = page_cache.drop(Path(reads or self.work.checkpoint or self.work.bundle))
        with tempfile.TemporaryFile() as log:
            try:
                worker = Worker(WORKER, self._spec(variant) | {"load_only": True}, log=log)
            except MeasurementError:
                return None, None  # the warm start meets the same, and tells
            worker.close()
        return worker.first["load_s"], note

    def _spec(self, variant: Variant) -> dict[str, Any]:
        file = self.result_file(variant)
        values = self.work.to_dict() | {"result": str(file), "video": str(file.with_suffix(".mp4"))}
        path = PEERS.get(variant.implementation)
        return {"implementation": variant.implementation, "path": path, "precision": variant.precision, "work": values}


def import_seconds(statement: str) -> list[float]:
    """Of as many fresh processes as the budget allows; empty where the libraries do not import."""
    code = f"import time; s = time.perf_counter()\n{statement}\nprint(time.perf_counter() - s)"
    taken: list[float] = []
    begun = time.monotonic()
    while len(taken) < IMPORTS and (not taken or time.monotonic() - begun < IMPORTS_BUDGET_S):
        done = subprocess.run(child_python("-c", code), env=os.environ | OPT_OUT, capture_output=True, text=True)
        if done.returncode:
            break
        taken.append(float(done.stdout.split()[-1]))
    return taken
