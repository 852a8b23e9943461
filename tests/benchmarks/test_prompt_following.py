"""The judge must be right about rendered truth before it may judge a model."""

import numpy as np
import pytest
from mutoscope_export.builtin.grammar import Scene, all_scenes, sample_scenes
from mutoscope_export.builtin.renderer import render

from benchmarks.prompt_following import ASPECTS, choose_scenes, judge, summarise


def test_the_judge_reads_rendered_truth_right_in_99_of_100_clips():
    rng = np.random.default_rng(11)
    scenes = sample_scenes(300, rng, all_scenes())
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


@pytest.mark.parametrize("aspect", ASPECTS)
def test_the_judge_notices_a_clip_of_another_scene(aspect):
    rng = np.random.default_rng(13)
    asked = Scene("red", "circle", "moving left", "black")
    other = Scene("cyan", "square", "growing", "brown")
    assert getattr(judge(render(other, rng)), aspect) != getattr(asked, aspect)


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
