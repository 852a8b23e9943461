"""A whole clip of ours, as `mutoscope generate` makes it, and the seconds of its parts.

Knows the pipeline and its stages. Knows nothing of cases, or of what the seconds are compared with.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np
from mutoscope import Pipeline
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.contract import DENOISE, stage_of
from mutoscope.conditions.base import Condition, Settled, UseGraphs
from mutoscope.output.frames import Frames
from mutoscope.output.video import write_video
from mutoscope.pipeline import EncodedConditions
from mutoscope.planning.execution import Execution
from mutoscope.planning.plan import Job, Plan
from mutoscope.request import PICTURES, RequestFields, RuntimeOptions, VideoRequest
from mutoscope.running import loaded
from mutoscope.running.denoise import StepEvent
from mutoscope_engines.session import Feeds, Host, Tensor

from .implementation import Work, batch_plans
from .measuring import Answer, Run
from .stages import STAGES


class TimedPipeline(Pipeline):
    """A pipeline that knows when each of its graphs was first called for a clip.

    Args:
        keep_loaded: leave all graphs open from video to video, also those of two experts, of which a plan keeps none.
    """

    def __init__(self, bundle: Bundle, options: RuntimeOptions, *, keep_loaded: bool = False) -> None:
        super().__init__(bundle, options)
        self._keep_loaded = keep_loaded
        self._graphs = self._timed = _TimedGraphs(self.bundle, self._execution)

    @property
    def first_calls(self) -> dict[str, float]:
        """When the graph of each role was first called since this was last cleared, as `time.perf_counter` has it."""
        return self._timed.first_calls

    def _job(self, request: VideoRequest | str | None, fields: RequestFields) -> Job:
        job = super()._job(request, fields)
        if not self._keep_loaded:
            return job
        return replace(job, plan=replace(job.plan, memory=replace(job.plan.memory, keep_loaded=True)))


class _TimedGraphs(loaded.LoadedGraphs):
    def __init__(self, bundle: Bundle, execution: Execution) -> None:
        super().__init__(bundle, execution)
        self.first_calls: dict[str, float] = {}

    @contextmanager
    def use(self, role: str, plan: Plan) -> Iterator[loaded.Run]:
        with super().use(role, plan) as run:

            def timed(feeds: Feeds) -> dict[str, Tensor]:
                self.first_calls.setdefault(role, time.perf_counter())
                return run(feeds)

            yield timed


class _TimedConditions(EncodedConditions):
    """Encodes everything anew, and knows how long that of the pictures took."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures_s = 0.0

    def encode(self, condition: Condition, settled: Settled, run: UseGraphs) -> dict[str, Host]:
        started = time.perf_counter()
        encoded = condition.encode(settled, run)
        if settled.facts.keys() & PICTURES:
            self.pictures_s += time.perf_counter() - started
        return encoded


def clip_run(pipeline: TimedPipeline, work: Work) -> Run:
    """Makes the clips of the work, whose frames go to the encoder as they are decoded."""
    output = FramesFile(work)

    def run() -> Answer:
        started = time.perf_counter()
        answers = [_clip(pipeline, work, seed, file, output) for seed, file in batch_plans(work)]
        elapsed = time.perf_counter() - started
        output.save()
        return answers[0] | {"elapsed_s": elapsed, "sha256": output.sha256}

    return run


def _clip(pipeline: TimedPipeline, work: Work, seed: int, file: Path, output: FramesFile) -> Answer:
    marks: list[float] = []  # the begin of denoising, and the end of each step

    def on_stage(stage: str) -> None:
        if stage == DENOISE:
            marks.append(time.perf_counter())

    def on_step(event: StepEvent) -> None:
        marks.append(time.perf_counter())

    pipeline.first_calls.clear()
    started = time.perf_counter()
    first_frame: list[float] = []

    def watched(stream: Iterator[Frames]) -> Iterator[Frames]:
        for chunk in stream:
            if not first_frame:
                first_frame.append(time.perf_counter() - started)
            output.take(chunk)
            yield chunk

    request, encoded = VideoRequest.from_dict(work.request | {"seed": seed}), _TimedConditions()
    with pipeline.stream(request, on_step=on_step, on_stage=on_stage, encoded=encoded) as stream:
        write_video(file, watched(stream), stream.plan.header, sign="off")
    elapsed = time.perf_counter() - started
    seconds = stream.times.seconds
    stages = {name: seconds[stage.of_runtime] for name, stage in STAGES.items() if stage.of_runtime}
    if encoded.pictures_s:
        stages["picture_encoder"] = encoded.pictures_s
        stages["text_encoder"] -= encoded.pictures_s
    stages |= {"first_frame": first_frame[0], "encode": elapsed - sum(seconds.values())}
    stages |= _switch(pipeline.first_calls, marks)
    return {"stages": stages, "steps": [later - earlier for earlier, later in pairwise(marks)]}


def _switch(first_calls: Mapping[str, float], marks: Sequence[float]) -> dict[str, float]:
    """From the end of the last step of one expert to the first call of the next, where there is one."""
    _, *later = (called for role, called in first_calls.items() if stage_of(role) == DENOISE)
    return {"switch": sum(called - max(mark for mark in marks if mark <= called) for called in later)} if later else {}


class FramesFile:
    """Takes the frames of the first run to a file as they come, and their hash; of later runs, nothing.

    Attributes:
        sha256: of all bytes of the frames, in hexadecimal, once they are there.
    """

    def __init__(self, work: Work) -> None:
        self.sha256: str | None = None
        self._hash = hashlib.sha256()
        self._path = Path(work.result)
        self._frames = work.plan["num_frames"] * work.batch
        self._file: IO[bytes] | None = None

    def take(self, chunk: Frames) -> None:
        """Writes the next frames, uint8 `[n, H, W, 3]`."""
        if self.sha256 is not None:
            return
        if self._file is None:
            self._file = self._path.open("wb")
            header = {"descr": "|u1", "fortran_order": False, "shape": (self._frames, *chunk.shape[1:])}
            np.lib.format.write_array_header_1_0(self._file, header)
        data = chunk.tobytes()
        self._hash.update(data)
        self._file.write(data)

    def save(self) -> None:
        """Ends the file, and fixes the hash."""
        if self._file is not None and self.sha256 is None:
            self._file.close()
            self.sha256 = self._hash.hexdigest()
