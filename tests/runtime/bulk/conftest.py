"""A small bundle and a backend that makes grey videos of it, as the commands' tests have them; and batches of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mutoscope import OutputOptions, Pipeline, RuntimeOptions
from mutoscope.bulk.jobs import read_jobs
from mutoscope.bulk.options import BatchOptions
from mutoscope.bulk.task import Batch
from mutoscope_engines.testing import FakeBackend

from tests.runtime.commands.conftest import backend, bundle

__all__ = ["backend", "bundle"]


@pytest.fixture
def pipeline(bundle: Path, backend: FakeBackend) -> Iterator[Pipeline]:
    with Pipeline.load(bundle) as made:
        yield made


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of jobs: text as it is, anything else as JSON."""

    def lines(*jobs: Any) -> Path:
        path = tmp_path / "jobs.jsonl"
        texts = [job if isinstance(job, str) else json.dumps(job) for job in jobs]
        path.write_text("".join(f"{text}\n" for text in texts), "utf-8")
        return path

    return lines


@pytest.fixture
def make_batch(pipeline: Pipeline, write: Callable[..., Path], tmp_path: Path) -> Callable[..., Batch]:
    """A batch of jobs into the folder `out`, of NumPy files unless told otherwise."""

    def make(*jobs: Any, **options: Any) -> Batch:
        chosen = BatchOptions(**{"ending": ".npy", "lease": 60, **options})
        checked = read_jobs(write(*jobs), pipeline, chosen.ending, OutputOptions())
        return Batch(
            out=tmp_path / "out",
            tasks=checked.tasks,
            bundle=pipeline.bundle.root,
            setting=checked.setting,
            runtime=RuntimeOptions(),
            options=chosen,
        )

    return make
