"""A clip reaches the encoder call by call, and its latents the first step with noise. Text alone runs no encoder."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.conditionings import VideoConditioning
from mutoscope.bundle.manifest import Expert, Frames
from mutoscope.errors import BundleError, OutOfMemoryError, RequestError
from mutoscope.pipeline import EncodedConditions, Pipeline
from mutoscope.request import RuntimeOptions
from mutoscope.solvers.noise import NormalStream
from PIL import Image

from tests.bundles import graphs, interfaces, tensors
from tests.runtime.conditions.encoding import counting, encoder_ends
from tests.runtime.test_clips import lossless

MakeBundle = Callable[..., Bundle]
CLIP = np.random.default_rng(0).integers(0, 256, (10, 40, 60, 3), np.uint8)
SIZED: dict[str, Any] = {"prompt": "a red circle", "height": 32, "width": 48, "num_inference_steps": 10, "seed": 3}
VIDEO: dict[str, Any] = {"name": "video", "role": "vae_encoder_first", "following": "vae_encoder_next"}
ENCODERS = ("vae_encoder_first", "vae_encoder_next")


@pytest.fixture
def with_video(make_bundle: MakeBundle) -> MakeBundle:
    """A bundle that may be given a clip; keywords change what its manifest says of it."""

    plain = make_bundle().manifest

    def make(experts: tuple[Expert, ...] = (Expert(),), lengths: Frames = plain.frames, **changes: Any) -> Bundle:
        video = VideoConditioning(**(VIDEO | changes))
        ends = interfaces() | encoder_ends()
        ends |= {expert.role: ends["denoiser"] for expert in experts}
        return make_bundle(conditionings=(*plain.texts, video), experts=experts, graphs=graphs(ends), frames=lengths)

    return make


def fed(bundle: Bundle, **asked: Any) -> tuple[dict[str, list[dict[str, Any]]], Any]:
    """What each graph was fed for a video, call by call, and its plan."""
    backend = counting()
    with Pipeline(bundle, RuntimeOptions(backend=backend)) as pipeline:
        plan = pipeline.generate(**SIZED | asked).plan
    given: dict[str, list[dict[str, Any]]] = {}
    for graph, feeds in backend.fed:
        given.setdefault(graph, []).append(feeds)
    return given, plan


def planned(bundle: Bundle, **asked: Any) -> Any:
    with Pipeline(bundle, RuntimeOptions(backend=counting())) as pipeline:
        return pipeline.plan(**SIZED | asked)


def test_each_frame_is_resized_as_pil_does_and_encoded_in_its_turn(with_video: MakeBundle) -> None:
    given, _ = fed(with_video(), video=CLIP, strength=0.5)
    resized = [np.asarray(Image.fromarray(frame).resize((48, 32), Image.Resampling.LANCZOS)) for frame in CLIP]
    first, *following = [*given["vae_encoder_first"], *given["vae_encoder_next"]]
    assert np.array_equal(first["frames"], resized[:1])
    assert [np.array_equal(call["frames"], resized[at : at + 4]) for call, at in zip(following, (1, 5), strict=True)]
    assert [call["cache_0"].flat[0] for call in following] == [1, 2]


def test_the_first_step_that_is_made_begins_from_the_clip_with_its_noise(with_video: MakeBundle) -> None:
    given, plan = fed(with_video(), video=CLIP, strength=0.3, scheduler="euler")
    steps = given["denoiser"]
    assert len(steps) == len(plan.schedule.timesteps) == 3
    whole = planned(with_video(), scheduler="euler").schedule.timesteps
    assert plan.schedule.timesteps == whole[-3:]
    sigma = np.float32(plan.schedule.timesteps[0] / 1000)
    resized = [np.asarray(Image.fromarray(frame).resize((48, 32), Image.Resampling.LANCZOS)) for frame in CLIP]
    means = [np.mean(resized[start:end], dtype=np.float32) for start, end in ((0, 1), (1, 5), (5, 9))]
    clean = np.broadcast_to(np.asarray(means, np.float32)[:, None, None], (4, 3, 4, 6))
    expected = (1 - sigma) * clean + sigma * NormalStream(3).draw((4, 3, 4, 6))
    np.testing.assert_allclose(steps[0]["latents"], expected, rtol=1e-5)
    np.testing.assert_array_equal(steps[0]["state"][0], steps[0]["latents"])


def test_of_a_text_alone_no_encoder_is_planned_opened_or_run(with_video: MakeBundle) -> None:
    backend = counting()
    with Pipeline(with_video(), RuntimeOptions(backend=backend)) as pipeline:
        plan = pipeline.preload(**SIZED, num_frames=9)
        pipeline.generate(**SIZED, num_frames=9)
        changed = pipeline.plan(**SIZED, video=CLIP)
    assert plan.conditions.encoders == ("text_encoder",)
    assert changed.conditions.encoders == ("text_encoder", *ENCODERS)
    assert "vae_encoder" not in plan.memory.options
    assert changed.memory.options["vae_encoder"].buffer_bytes > 0
    assert not {name for _, name in backend.log} & set(ENCODERS)


def test_length_rate_and_size_are_those_of_the_clip_where_nothing_is_said(
    with_video: MakeBundle, tmp_path: Path
) -> None:
    path = tmp_path / "clip.mkv"
    path.write_bytes(lossless(CLIP[:7], rate=24))
    bundle = with_video()
    assert bundle.manifest.defaults.num_frames == 9
    plan = planned(bundle, video=path, height=None, width=None)
    assert (plan.geometry.num_frames, plan.geometry.fps, plan.conditions.facts["strength"]) == (5, Fraction(24), 0.8)
    assert plan.geometry.height / plan.geometry.width == pytest.approx(40 / 60, abs=0.1)
    assert plan.notes == ("of video the first 5 frames are used, and what follows is left out",)
    said = planned(bundle, video=path, num_frames=1, fps=8)
    assert (said.geometry.num_frames, said.geometry.fps) == (1, Fraction(8))
    assert planned(bundle, video=CLIP[:5]).notes == ()


def test_no_more_of_a_long_clip_is_used_than_a_video_has_by_default(with_video: MakeBundle) -> None:
    bundle = with_video()
    most = bundle.manifest.defaults.num_frames
    long = np.repeat(CLIP, -(-(most + 8) // len(CLIP)), axis=0)
    assert planned(bundle, video=long).geometry.num_frames == most
    assert planned(bundle, video=long, num_frames=most + 4).geometry.num_frames == most + 4


def test_a_plan_names_the_clip_by_the_frames_that_are_used(with_video: MakeBundle) -> None:
    bundle = with_video()
    plan = planned(bundle, video=CLIP, strength=0.25)
    assert plan.conditions.facts["video"].startswith("60x40x9 sha256:")
    again = plan.to_request(video=CLIP[:9])
    assert (again.strength, again.num_frames, again.num_inference_steps) == (0.25, 9, 10)
    assert plan.header.has_footage
    assert not planned(bundle, video=CLIP, strength=1).header.has_footage  # which begins from noise alone
    assert planned(bundle, **vars(again)).to_dict() == plan.to_dict() | {"notes": ()}
    with pytest.raises(RequestError, match="video is missing: the plan has 60x40x9 sha256"):
        plan.to_request()
    with pytest.raises(RequestError, match="video is another than the plan has"):
        plan.to_request(video=CLIP[::-1].copy())


def test_a_plan_counts_the_memory_of_the_clip_and_prints_it(with_video: MakeBundle) -> None:
    plan = planned(with_video(), video=CLIP, num_frames=9)
    assert {option.clip_bytes for option in plan.memory.options.values()} == {9 * 32 * 48 * 3}
    assert "clips 41.47 kB" in plan.describe()
    assert "clips" not in planned(with_video()).describe()


def test_memory_that_runs_out_while_a_clip_is_read_is_told_in_words(
    with_video: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: Any) -> None:
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr("mutoscope.conditions.shown.fitted", none_left)
    with pytest.raises(OutOfMemoryError, match="Unable to allocate 9 GiB; close other programs, or ask for a smaller"):
        planned(with_video(), video=CLIP)


def test_the_same_clip_is_encoded_once_for_several_seeds(with_video: MakeBundle) -> None:
    backend, kept = counting(), EncodedConditions()
    with Pipeline(with_video(), RuntimeOptions(backend=backend)) as pipeline:
        for asked in ({"seed": 1}, {"seed": 2, "strength": 0.5}, {"video": CLIP[::-1].copy()}):
            list(pipeline.stream(**SIZED | {"video": CLIP} | asked, encoded=kept))
    assert [name for name, _ in backend.fed].count("vae_encoder_first") == 2


def test_the_reference_truncates_the_number_of_steps(with_video: MakeBundle) -> None:
    bundle = with_video()

    def made(count: int, strength: float) -> int:
        return len(planned(bundle, video=CLIP, num_inference_steps=count, strength=strength).schedule.timesteps)

    assert [made(10, strength) for strength in (0.1, 0.19, 0.2, 0.99, 1)] == [1, 1, 2, 9, 10]
    assert made(50, 0.58) == int(50 * 0.58) == 28  # as floating point has it


def test_of_two_experts_those_work_whose_steps_are_left(with_video: MakeBundle) -> None:
    bundle = with_video(experts=(Expert(above=500.0), Expert(role="denoiser_low")))
    given, plan = fed(bundle, video=CLIP, strength=0.2)
    assert plan.schedule.first_steps == {"denoiser_low": 9}
    assert len(given["denoiser_low"]) == 2
    assert "denoiser" not in given
    _, both = fed(bundle, video=CLIP, strength=0.9)
    assert list(both.schedule.first_steps) == ["denoiser", "denoiser_low"]


def test_a_clip_shorter_than_every_video_is_refused_in_words(with_video: MakeBundle) -> None:
    bundle = with_video(lengths=Frames(first=9, step=4, most=253, frames_per_call=(1, 4)))
    for asked in ({}, {"num_frames": 9}):
        with pytest.raises(RequestError, match=r"video has 5 frames[;,] .*\b9\b") as refused:
            planned(bundle, video=CLIP[:5], **asked)
        assert "num_frames=" not in str(refused.value)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"strength": 0.5}, "strength is for a video that is given, and there is none"),
        ({"video": CLIP, "strength": 1.5}, "strength must be a number from 0 to 1; got 1.5"),
        ({"video": CLIP, "strength": -1}, "strength must be a number from 0 to 1; got -1"),
        ({"video": CLIP, "strength": 0.05}, "none of the 10 steps is made; raise it to 0.1 at least"),
        ({"video": CLIP, "num_frames": 13}, "video has 10 frames, and the video .* has 13; .* or num_frames=9"),
        ({"video": CLIP, "num_frames": 10}, "num_frames must be .* multiple of 4; got 10; nearest: 9, 13"),
        ({"video": "none.mp4"}, "video is not there: 'none.mp4'"),
        ({"video": b"text"}, "video is not a video that can be read"),
        (
            {"video": CLIP, "scheduler": "lcm", "strength": 1},
            "lcm needs a row of solver state for each of its 10",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_words(with_video: MakeBundle, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        planned(with_video(), **asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"video": CLIP},
            "video is not a parameter of this bundle, which takes: prompt, neg.*option video_input",
        ),
        ({"strength": 0.5}, "strength is for a video that is given, and there is none"),
    ],
)
def test_a_bundle_without_the_encoder_says_how_to_get_one(
    make_bundle: MakeBundle, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        planned(make_bundle(), **asked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"role": "vae_encoder_next"}, "'vae_encoder_next' for its first call"),
        ({"following": "vae_encoder_first"}, "'vae_encoder_first' for its other calls"),
        ({"name": "clip"}, "needs the parameter 'clip', and this version of Mutoscope does not have it"),
    ],
)
def test_a_manifest_with_another_encoder_or_field_is_refused(
    with_video: MakeBundle, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        planned(with_video(**changes))


def test_a_graph_that_keeps_caches_of_another_form_is_refused(make_bundle: MakeBundle) -> None:
    ends = interfaces() | encoder_ends()
    inputs, (condition, _) = ends["vae_encoder_first"]
    ends["vae_encoder_first"] = inputs, (condition, *tensors(cache_0=(1, 3, "h", "w")))
    texts = make_bundle().manifest.texts
    with pytest.raises(BundleError, match="the caches that the vae_encoder_first in fp32 gives differ"):
        make_bundle(conditionings=(*texts, VideoConditioning(**VIDEO)), graphs=graphs(ends))
