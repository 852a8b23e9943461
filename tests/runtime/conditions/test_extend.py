"""A video that goes on from a clip: all frames of the clip, then new ones, and the frame between them once."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope.bundle.bundle import Bundle
from mutoscope.errors import RequestError
from mutoscope.pipeline import Pipeline
from mutoscope.request import RuntimeOptions
from mutoscope_engines.testing import FakeBackend
from PIL import Image

from tests.runtime.clips import scene
from tests.runtime.conditions.test_image import CONDITION, with_picture, zeros_but  # noqa: F401  # a fixture
from tests.runtime.test_clips import lossless

MakeBundle = Callable[..., Bundle]
CLIP = scene(7)  # 32 x 48, as the video
ASKED: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 2, "seed": 1}


def backend() -> FakeBackend:
    """One whose new frames are as grey as their number in a call."""
    made = zeros_but("vae_encoder_first", {"condition": CONDITION})
    made.checks_outputs = True

    def frames(features: Any, count: int) -> Any:
        levels = np.arange(10, 10 + count, dtype=np.uint8)[:, None, None, None]
        return np.broadcast_to(levels, (count, 8 * features.shape[2], 8 * features.shape[3], 3))

    def caches(features: Any, prefix: str) -> dict[str, Any]:
        rows, columns = features.shape[2:]
        return {
            f"{prefix}cache_0": np.zeros((1, 4, rows, columns), np.float32),
            f"{prefix}cache_1": np.zeros((1, 1, rows, columns), np.float32),
        }

    made.graphs |= {
        "vae_decoder_first": lambda *, features: {"frames": frames(features, 1), **caches(features, "")},
        "vae_decoder_next": lambda *, features, **_: {"frames": frames(features, 4), **caches(features, "next_")},
    }
    return made


@pytest.fixture
def pipeline(with_picture: MakeBundle) -> Any:  # noqa: F811
    with Pipeline(with_picture(), RuntimeOptions(backend=backend())) as opened:
        yield opened


def test_the_clip_comes_first_and_the_frame_between_once(pipeline: Pipeline) -> None:
    video = pipeline.generate(**ASKED, extend=CLIP, num_frames=9)
    assert np.array_equal(video.frames[:7], CLIP)
    assert video.plan.header.has_footage
    assert video.frames[7:, 0, 0, 0].tolist() == [10, 11, 12, 13] * 2  # of the first call, nothing is left
    assert (video.plan.geometry.num_frames, video.plan.geometry.frames_before) == (9, 7)
    chunks = list(pipeline.stream(**ASKED, extend=CLIP, num_frames=9))
    assert np.array_equal(np.concatenate(chunks), video.frames)


def test_while_the_clip_is_written_no_time_counts_as_decoding(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    stream = pipeline.stream(**ASKED, extend=CLIP, num_frames=9)
    for _ in stream:
        now[0] += 1
    assert stream.times.seconds == {"condition": 0, "denoise": 0, "decode": 0}


def test_its_last_frame_is_the_picture(with_picture: MakeBundle) -> None:  # noqa: F811
    fed = []
    for start in ({"extend": CLIP}, {"image": CLIP[-1], "height": 32, "width": 48}):
        here = backend()
        with Pipeline(with_picture(), RuntimeOptions(backend=here)) as opened:
            opened.generate(**ASKED, **start, num_frames=5)
        fed.append([feeds["frames"] for graph, feeds in here.fed if graph == "vae_encoder_first"])
    assert np.array_equal(fed[0], fed[1])


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="counts with ffprobe")
def test_a_file_has_as_many_frames_as_ffprobe_counts(pipeline: Pipeline, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mkv"
    clip.write_bytes(lossless(CLIP, rate=12))
    saved = pipeline.generate(**ASKED, extend=clip, num_frames=9).save(tmp_path / "longer.mp4")
    command = ["ffprobe", "-v", "error", "-count_frames", "-select_streams", "v", "-of", "json", "-show_entries"]
    told = subprocess.run(
        [*command, "stream=nb_read_frames,avg_frame_rate", str(saved)], capture_output=True, check=True
    )
    (stream,) = json.loads(told.stdout)["streams"]
    assert stream == {"nb_read_frames": "15", "avg_frame_rate": "12/1"}


def test_its_own_size_and_rate_are_kept_where_the_model_makes_them(pipeline: Pipeline) -> None:
    plan = pipeline.plan(**ASKED, extend=lossless(CLIP, rate=8))
    assert (plan.geometry.height, plan.geometry.width, plan.geometry.fps) == (32, 48, 8)
    assert plan.notes == ()


def test_what_is_not_kept_of_the_clip_is_said(pipeline: Pipeline) -> None:
    odd = lossless(scene(3, 30, 50), rate=48, sound=True)
    plan = pipeline.plan(**ASKED, extend=odd, fps=16, height=32, width=48)
    assert plan.notes == (
        "the frames of extend are resized from 50x30 to 48x32, the size of the new ones",
        "the sound of extend is not kept",
        "extend plays at 16 frames per second, and not at its own rate",
        "the video plays at 16 frames per second, and the model makes 8; so what moves in the new frames is 2 times "
        "as fast as the model means it",
    )
    video = pipeline.generate(**ASKED, extend=odd, height=32, width=48, num_frames=5)
    resized = Image.fromarray(scene(3, 30, 50)[0]).resize((48, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(video.frames[0], resized)
    assert video.plan.geometry.fps == Fraction(48)


def test_a_clip_that_changed_since_it_was_planned_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    path.write_bytes(lossless(CLIP))
    stream = pipeline.stream(**ASKED, extend=path, num_frames=5)
    path.write_bytes(lossless(255 - CLIP))
    with pytest.raises(RequestError, match="extend was changed since the video was planned; ask for it again"):
        list(stream)


def test_frames_of_a_clip_are_not_on_the_device(with_picture: MakeBundle) -> None:  # noqa: F811
    on_device = backend()
    on_device.on_device = True
    with Pipeline(with_picture(), RuntimeOptions(backend=on_device)) as opened:
        stream = opened.stream(**ASKED, extend=CLIP, num_frames=5)
        with pytest.raises(RequestError, match="with extend the first frames are in host memory"):
            stream.on_device()


def test_a_plan_names_the_whole_clip_and_makes_the_same_again(pipeline: Pipeline) -> None:
    plan = pipeline.plan(**ASKED, extend=CLIP, num_frames=5)
    assert plan.conditions.facts["extend"].startswith("48x32x7 sha256:")  # type: ignore[union-attr]
    assert "image" not in plan.conditions.facts
    again = plan.to_request(extend=CLIP)
    assert pipeline.plan(again).to_dict() == plan.to_dict()
    with pytest.raises(RequestError, match="extend is another than the plan has"):
        plan.to_request(extend=CLIP[:-1])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"image": CLIP[0]}, "extend already says what the new frames begin with; leave image out"),
        ({"video": CLIP}, "leave video out"),
        ({"num_frames": 1}, "with num_frames=1 nothing is added"),
        ({"extend": "none.mp4"}, "extend is not there: 'none.mp4'"),
        ({"extend": "none.mp4", "height": 33}, "height must be a multiple of"),
        ({"extend": CLIP[0]}, "extend must be an array uint8"),
    ],
)
def test_what_cannot_be_is_refused_in_words(pipeline: Pipeline, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        pipeline.plan(**ASKED | {"extend": CLIP} | asked)


def test_a_model_that_takes_no_picture_refuses_it(make_bundle: MakeBundle) -> None:
    with (
        Pipeline(make_bundle(), RuntimeOptions(backend=FakeBackend())) as opened,
        pytest.raises(RequestError, match="extend is for models that take a picture, which its last frame"),
    ):
        opened.plan(**ASKED, extend=CLIP)
