"""Several videos through the machinery of `mutoscope batch`, in turn with a loop that has none of it.

Knows jobs, workers and receipts as the command does. What the batch takes longer is its price: claims, receipts and
synced files. What it takes shorter is that it encodes a prompt once for its seeds.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from mutoscope import Pipeline
from mutoscope.bulk.jobs import read_jobs
from mutoscope.bulk.options import BatchOptions
from mutoscope.bulk.receipts import write_lists
from mutoscope.bulk.task import Batch
from mutoscope.bulk.worker import Worker, open_store
from mutoscope.request import OutputOptions, VideoRequest

from .implementation import Work, batch_plans
from .measuring import Answer, Run, taking_turns

OUTPUT = OutputOptions(sign="off")  # a signature makes two files of one video differ


def bulk_run(pipeline: Pipeline, work: Work) -> Run:
    """Makes the videos of the work twice in each run, and takes turns in which way comes first.

    Raises:
        MeasurementError: in a run, where the two ways made different files.
    """
    ways = {name: partial(_timed, way, pipeline, work) for name, way in (("batch", _batch), ("loop", _loop))}
    taken = taking_turns(ways, "the batch made other videos than Pipeline.generate")

    def run() -> Answer:
        seconds, sha256 = taken()
        return {"elapsed_s": seconds["batch"], "stages": {"loop": seconds["loop"]}, "sha256": sha256}

    return run


def _timed(make: Callable[[Pipeline, Work, Path], list[Path]], pipeline: Pipeline, work: Work) -> tuple[float, str]:
    with tempfile.TemporaryDirectory(dir=Path(work.video).parent) as folder:
        started = time.perf_counter()
        files = make(pipeline, work, Path(folder))
        elapsed = time.perf_counter() - started
        return elapsed, hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _batch(pipeline: Pipeline, work: Work, folder: Path) -> list[Path]:
    jobs, options = folder / "jobs.jsonl", BatchOptions()
    jobs.write_text(json.dumps(work.request | {"repeat": work.batch}), "utf-8")
    checked = read_jobs(jobs, pipeline, options.ending, OUTPUT)
    batch = Batch(
        out=folder / "out",
        tasks=checked.tasks,
        bundle=pipeline.bundle.root,
        setting=checked.setting,
        runtime=pipeline.options,
        output=OUTPUT,
        options=options,
    )
    Worker(batch, pipeline).run()
    with open_store(batch) as store:
        write_lists(batch, store)
    return [batch.out / batch.video(task.key) for task in batch.tasks]


def _loop(pipeline: Pipeline, work: Work, folder: Path) -> list[Path]:
    files = []
    for seed, file in batch_plans(work):
        video = pipeline.generate(VideoRequest.from_dict(work.request | {"seed": seed}))
        files.append(video.save(folder / file.name, **asdict(OUTPUT)))
    return files
