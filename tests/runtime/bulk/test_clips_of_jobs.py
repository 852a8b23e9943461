"""Jobs with clips: which file is meant, and which video it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from mutoscope import OutputOptions, Pipeline, RuntimeOptions
from mutoscope.bulk.jobs import read_jobs
from mutoscope.bundle.bundle import Bundle

from tests.runtime.conditions.encoding import counting
from tests.runtime.conditions.test_video import CLIP, with_video
from tests.runtime.test_clips import lossless

__all__ = ["with_video"]


def test_a_job_is_known_by_the_frames_of_its_clip_and_by_its_strength(
    with_video: Callable[..., Bundle], write: Callable[..., Path], tmp_path: Path
) -> None:
    files = {"a.mkv": CLIP[:5], "same.mkv": CLIP[:6], "other.mkv": 255 - CLIP[:5]}
    for name, frames in files.items():
        (tmp_path / name).write_bytes(lossless(np.ascontiguousarray(frames)))
    jobs = [{"prompt": "a circle", "seed": 1, "num_frames": 5, "video": name} for name in files]
    with Pipeline(with_video(), RuntimeOptions(backend=counting())) as pipeline:
        path = write(*jobs, jobs[0] | {"strength": 0.5})
        tasks = read_jobs(path, pipeline, ".npy", OutputOptions()).tasks
    assert tasks[0].key == tasks[1].key
    assert len({task.key for task in tasks}) == 3
    assert tasks[0].request.video == str(tmp_path / "a.mkv")
