"""A request into a file, with its hashes, and an observer that is told and may end it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from mutoscope import OutputError, Pipeline, Plan, VideoRequest
from mutoscope.making import Observer, make_file

REQUEST = VideoRequest(prompt="a red circle", seed=1, num_frames=5, num_inference_steps=2)


class Recorder(Observer):
    def __init__(self, end_at: int = 0) -> None:
        self.events: list[object] = []
        self.end_at = end_at

    def on_plan(self, plan: Plan) -> None:
        self.events.append(plan.seed)

    def on_stage(self, stage: str) -> None:
        self.events.append(stage)

    def on_step(self, event: object) -> None:
        self.events.append("step")

    def on_frames(self, done: int, total: int) -> None:
        self.events.append((done, total))
        if done == self.end_at:
            raise InterruptedError


@pytest.fixture(scope="module")
def pipeline():
    with Pipeline.load() as made:
        yield made


def test_a_file_comes_with_its_plan_times_and_hashes(pipeline: Pipeline, tmp_path: Path):
    observer = Recorder()
    made = make_file(pipeline, REQUEST, tmp_path / "out.mp4", observer=observer)
    assert made.file.path == tmp_path / "out.mp4"
    assert made.file.sha256 == hashlib.sha256(made.file.path.read_bytes()).hexdigest()
    assert made.file.bytes == made.file.path.stat().st_size
    assert set(made.times_s) == {"condition", "denoise", "decode", "write"}
    assert observer.events == [1, "condition", "denoise", "step", "step", "decode", (1, 5), (5, 5)]


def test_an_observer_that_raises_ends_the_work_and_leaves_nothing(pipeline: Pipeline, tmp_path: Path):
    with pytest.raises(InterruptedError):
        make_file(pipeline, REQUEST, tmp_path / "out.mp4", observer=Recorder(end_at=1))
    assert not list(tmp_path.iterdir())
    assert make_file(pipeline, REQUEST, tmp_path / "out.mp4").plan.seed == 1


def test_a_place_that_cannot_be_written_is_refused_before_any_work(pipeline: Pipeline, tmp_path: Path):
    observer = Recorder()
    with pytest.raises(OutputError, match="there is no folder"):
        make_file(pipeline, REQUEST, tmp_path / "none" / "out.mp4", observer=observer)
    assert observer.events == []
