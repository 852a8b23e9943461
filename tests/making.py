"""What tests make before they begin: once for all processes of a run, and without coverage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from coverage import Coverage
from filelock import FileLock


def made_once(name: str, make: Callable[[Path], object], factory: pytest.TempPathFactory) -> Path:
    """A file or folder that all processes of a run share: the first that asks makes it, the others wait."""
    folder = factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent  # that of the run, in which each process has its own
    path = folder / name
    with FileLock(f"{path}.lock"):
        if not path.exists():
            partial = path.with_name(f"{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of an attempt that failed
            with unmeasured():
                make(partial)
            partial.rename(path)
    return path


@contextmanager
def unmeasured() -> Iterator[None]:
    """Coverage looks at every line that runs. Torch's exporter, of which none counts, then takes twice as long."""
    stopped = []
    while measuring := Coverage.current():  # in a process of pytest-xdist two: as its own, and as a child of the first
        measuring.stop()
        stopped.append(measuring)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # from which child processes know that they count
            yield
    finally:
        for measuring in reversed(stopped):
            measuring.start()
