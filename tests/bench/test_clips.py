"""When the first frame is there, and how long the switch of experts takes, on graphs that are slow on purpose."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mutoscope.bundle.bundle import Bundle
from mutoscope.request import RuntimeOptions, VideoRequest
from mutoscope_bench.clips import TimedPipeline, clip_run
from mutoscope_bench.implementation import Work
from mutoscope_bench.measuring import Answer
from mutoscope_engines.session import Session, SessionOptions
from mutoscope_engines.testing import FakeBackend

from tests.bench.two_experts import bundle_of_two

SLOW_S = 0.2
REQUEST = {
    "prompt": "a red circle", "seed": 7, "height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 4,
    "guidance_scale": 1.0,
}  # fmt: skip


class SlowToOpen(FakeBackend):
    """Opening a second expert, and the decoder of all frames but the first, takes `SLOW_S` more."""

    def open(self, graph: Path, options: SessionOptions) -> Session:
        if graph.parent.name in ("denoiser_low", "vae_decoder_next"):
            time.sleep(SLOW_S)
        return super().open(graph, options)


@pytest.fixture
def answers(tmp_path: Path) -> Callable[..., list[Answer]]:
    """What two runs of the clip say."""

    def answers(bundle: Path, **options: Any) -> list[Answer]:
        runtime = RuntimeOptions(backend=SlowToOpen(), precision="fp32")
        with TimedPipeline(Bundle.open(bundle), runtime, **options) as pipeline:
            plan = pipeline.plan(VideoRequest.from_dict(REQUEST))
            work = Work(
                kind="clip", bundle=str(bundle), checkpoint=None, plan=plan.to_dict(), request=REQUEST, text_tokens=0,
                texts={}, threads=1, batch=1, result=str(tmp_path / "result.npy"), video=str(tmp_path / "video.mp4"),
                runtime={},
            )  # fmt: skip
            run = clip_run(pipeline, work)
            return [run(), run()]

    return answers


def test_the_first_frame_is_there_before_the_others_are_decoded(
    wan_bundle: Path, answers: Callable[..., list[Answer]]
) -> None:
    first, _ = answers(wan_bundle)
    assert 0 < first["stages"]["first_frame"] < first["elapsed_s"] - SLOW_S
    assert first["stages"]["decode"] > SLOW_S


def test_with_one_expert_there_is_no_switch(wan_bundle: Path, answers: Callable[..., list[Answer]]) -> None:
    assert all("switch" not in answer["stages"] for answer in answers(wan_bundle))


@pytest.mark.parametrize("keep_loaded", [False, True])
def test_the_switch_lasts_until_the_second_expert_is_loaded_and_is_next_to_nothing_where_it_was(
    wan_bundle: Path, tmp_path: Path, answers: Callable[..., list[Answer]], keep_loaded: bool
) -> None:
    made = answers(bundle_of_two(wan_bundle, tmp_path / "two"), keep_loaded=keep_loaded)
    waited = [answer["stages"]["switch"] > SLOW_S for answer in made]
    assert waited == [True, not keep_loaded]
    assert all(len(answer["steps"]) == 4 for answer in made)
    assert all(answer["stages"]["switch"] < max(answer["steps"]) for answer in made)
