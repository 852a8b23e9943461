"""The judge must be right about rendered truth before it may judge a model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mutoscope_export.demo.grammar import BACKGROUNDS, MOTIONS, Scene, all_scenes, sample_scenes
from mutoscope_export.demo.renderer import render

from benchmarks.prompt_following import ASPECTS, GOALS, Judgement, choose_scenes, goals_met, judge, summarise

REPOSITORY = Path(__file__).parents[2]
RESULTS = sorted((REPOSITORY / "benchmarks/results").glob("prompt_following*.json"))


def test_the_judge_reads_rendered_truth_right_in_99_of_100_clips():
    rng = np.random.default_rng(11)
    scenes = sample_scenes(200, rng, all_scenes())
    seen = [judge(render(scene, rng)) for scene in scenes]
    for aspect in ASPECTS:
        pairs = [(getattr(one, aspect), getattr(scene, aspect)) for one, scene in zip(seen, scenes, strict=True)]
        assert np.mean([one == other for one, other in pairs]) >= 0.99, aspect


def test_the_judge_reads_blurred_and_noisy_truth_as_well():
    rng = np.random.default_rng(12)
    wrong = 0
    for scene in sample_scenes(100, rng, [scene for scene in all_scenes() if scene.size != "small"]):
        clip = render(scene, rng).astype(np.float32)
        clip = (clip + np.roll(clip, 1, 1) + np.roll(clip, 1, 2)) / 3 + rng.normal(0, 6, clip.shape)
        seen = judge(np.clip(clip, 0, 255).astype(np.uint8))
        wrong += any(getattr(seen, aspect) != getattr(scene, aspect) for aspect in ASPECTS)
    assert wrong <= 5


ASKED = Scene("red", "circle", "moving left", "black")


@pytest.mark.parametrize(
    ("aspect", "word"),
    [("colour", "orange"), ("background", "navy"), ("motion", "moving up"), ("shape", "ring"), ("shape", "square")],
)
def test_the_judge_notices_when_one_aspect_alone_is_another(aspect, word):
    seen = judge(render(replace(ASKED, **{aspect: word}), np.random.default_rng(13)))
    assert {name for name in ASPECTS if getattr(seen, name) != getattr(ASKED, name)} == {aspect}
    assert getattr(seen, aspect) == word


@pytest.fixture
def clip():
    return render(ASKED, np.random.default_rng(14))


def test_a_clip_whose_shape_is_gone_in_two_frames_shows_nothing(clip):
    clip[[3, 9]] = clip[0, 0, 0]
    assert judge(clip) == Judgement(None, "black", None, None)


def test_a_clip_whose_shape_is_gone_in_one_frame_is_still_told(clip):
    clip[3] = clip[0, 0, 0]
    assert judge(clip) == Judgement("red", "black", "moving left", "circle")


def test_a_shape_that_changes_its_colour_every_third_frame_has_no_colour(clip):
    clip[::3] = clip[::3, :, :, ::-1]  # red and blue change places
    assert judge(clip).colour is None


def test_a_background_that_changes_every_third_frame_is_none(clip):
    clip[::3] = render(replace(ASKED, background="brown"), np.random.default_rng(14))[::3]
    assert judge(clip).background is None


@pytest.mark.parametrize("motion", [motion for motion in MOTIONS if motion != "staying still"])
def test_frames_in_the_wrong_order_have_no_motion(motion):
    rng = np.random.default_rng(15)
    clip = render(replace(ASKED, motion=motion, size="small"), rng)
    clip[3:14] = clip[3 + rng.permutation(11)]
    assert judge(clip).motion is None


def test_a_shape_that_moves_aslant_has_no_motion_of_the_grammar():
    still = render(Scene("red", "circle", "staying still", "black", "small"), np.random.default_rng(16))
    aslant = np.stack([np.roll(frame, (2 * index, 2 * index), (0, 1)) for index, frame in enumerate(still)])
    aslant = np.roll(aslant, -_top_left(still[0]) + 4, (1, 2))
    assert judge(aslant).motion is None


def _top_left(frame):
    return np.argwhere(frame[..., 0] > 100).min(axis=0)


@pytest.mark.parametrize("width", [3, 6])
def test_a_gray_stripe_at_the_edge_makes_no_other_shape_of_a_circle(clip, width):
    clip[:, :, :width] = BACKGROUNDS["gray"]
    assert judge(clip).shape in ("circle", None)


def test_two_shapes_are_none(clip):
    assert judge(np.maximum(clip, np.roll(clip, 40, axis=1))).shape is None


def test_a_background_of_two_halves_is_not_taken_for_one_with_a_shape(clip):
    clip[:, 4:92] = np.where(clip[:, 4:92] < 30, np.uint8(120), clip[:, 4:92])
    seen = judge(clip)
    assert (seen.background, seen.shape) != ("black", "circle")


def test_noise_is_no_shape_in_motion():
    noise = np.random.default_rng(0).integers(0, 25, (17, 96, 96, 3)).astype(np.uint8)
    assert judge(noise).colour is None


def test_a_quarter_of_the_prompts_judged_is_held_out_of_training():
    assert sum(scene.held_out for scene in choose_scenes(240)) == 60


def test_the_summary_counts_each_group():
    row = {"colour": True, "background": True, "motion": False, "shape": True}
    summary = summarise([row | {"held_out": True}, row | {"held_out": False, "motion": True}])
    assert summary["all"] == {"colour": 1.0, "background": 1.0, "motion": 0.5, "shape": 1.0, "n": 2}
    assert summary["held_out"]["motion"] == 0.0


def test_a_goal_is_met_or_missed_by_itself():
    right = {"all": dict.fromkeys(ASPECTS, 0.92)}
    assert goals_met(right) == {"colour": False, "background": False, "motion": True, "shape": True}


@pytest.mark.parametrize("file", RESULTS or [None], ids=lambda file: file.stem if file else "none")
def test_a_committed_result_says_truly_which_goals_are_met_and_is_of_the_shipped_bundle(file):
    manifest = REPOSITORY / "runtime/mutoscope/builtin/bundle/manifest.json"
    if file is None or not manifest.exists():
        pytest.skip("no result or no built-in bundle is here yet")
    result = json.loads(file.read_text())
    assert result["goals"] == GOALS
    assert result["right"] == summarise(result["rows"])
    assert result["met"] == goals_met(result["right"])
    assert result["bundle_sha256"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
