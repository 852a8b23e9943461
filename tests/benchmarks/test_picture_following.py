"""The judge of pictures on clips whose truth is known: right ones pass, and each fault is found in its aspect alone."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from mutoscope_export.demo import make, train_denoiser, train_vae
from mutoscope_export.demo.grammar import MOTIONS
from mutoscope_export.demo.pictures import Place, continue_from, draw_pictured_clip
from mutoscope_export.demo.renderer import render, render_along
from mutoscope_export.demo.text import build_tokenizer

from benchmarks.picture_following import ASPECTS, GOALS, DiffusersModel, drawn_requests, goals_met, measure, summarise

COUNT = 8
TINY = {"height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 1, "guidance_scale": 1.5, "fps": 8}


class Drawing:
    """A model that is always right: it draws the clip, from a picture that it drew itself or that the judge draws."""

    def __init__(self):
        self.known = {}
        rng = np.random.default_rng((0, 2))  # of the judge
        for _ in range(2 * COUNT):
            self._remember(draw_pictured_clip(rng, held_out=True))

    def _remember(self, drawn):
        place = Place(*(float(values[0]) for values in (drawn.path.x, drawn.path.y, drawn.path.radius)))
        clip = render_along(drawn.shown, drawn.path)
        self.known[clip[0].tobytes()] = drawn.shown, place
        return clip

    def generate(self, prompt, *, seed, image=None):
        rng = np.random.default_rng(seed)
        if image is None:
            frames = self._remember(draw_pictured_clip(rng, held_out=True))[::-1]
        else:
            frames = self.go_on(image, next(motion for motion in MOTIONS if motion in prompt), rng)
        return SimpleNamespace(frames=frames, plan=SimpleNamespace(seed=seed))

    def go_on(self, image, motion, rng):
        shown, place = self.known[image.tobytes()]
        return render_along(shown, continue_from(place, motion, rng))


class StandingStill(Drawing):
    def go_on(self, image, motion, rng):
        return np.repeat(image[None], 17, 0)


class ChangingColours(Drawing):
    def go_on(self, image, motion, rng):
        clip = super().go_on(image, motion, rng)
        clip[1:] = clip[1:, :, :, ::-1] // 2 + 60
        return clip


class ForgettingThePicture(Drawing):
    def go_on(self, image, motion, rng):
        shown, _ = self.known[image.tobytes()]
        return render(replace(shown, motion=motion), rng)


def test_clips_that_are_right_are_judged_right():
    rows = measure(Drawing(), COUNT)
    right = summarise(rows)
    assert all(goals_met(right).values()) and right["all"]["shape"] >= 0.9
    assert right["drawn"]["n"] == right["own"]["n"] == COUNT // 2
    assert right["all"]["psnr_db_worst"] > 40
    assert len({row["prompt"] for row in rows}) > COUNT // 2


@pytest.mark.parametrize(
    ("model", "aspect"), [(StandingStill, "motion"), (ChangingColours, "colour"), (ForgettingThePicture, "first_frame")]
)
def test_a_model_with_one_fault_misses_that_goal(model, aspect):
    right = summarise(measure(model(), COUNT))
    assert not goals_met(right)[aspect]
    assert right["all"][aspect] < 0.7
    if model is not ChangingColours:
        assert all(reached for name, reached in goals_met(right).items() if name != aspect)


def test_some_prompts_have_other_words_than_their_picture_and_all_name_the_motion_that_is_judged():
    requests = list(drawn_requests(2 * COUNT))
    others = [request for request in requests if request.asked.colour != request.shown.colour]
    assert 2 <= len(others) <= COUNT + 4
    assert all(request.shown.motion == request.asked.motion for request in requests)


def test_the_summary_counts_by_group_and_keeps_the_worst_first_frame():
    row = dict.fromkeys(ASPECTS, True) | {"own": False, "other_words": False, "psnr_db": 40.0}
    summary = summarise([row, row | {"own": True, "motion": False, "psnr_db": 27.0}])
    assert summary["all"] == {
        "n": 2, "psnr_db_mean": 33.5, "psnr_db_worst": 27.0, "first_frame": 1.0, "colour": 1.0, "background": 1.0,
        "motion": 0.5, "shape": 1.0,
    }  # fmt: skip
    assert summary["own"]["motion"] == 0.0 and "other_words" not in summary
    assert goals_met(summary) == {name: name != "motion" for name in GOALS}


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """As `make` saves one, untrained and tiny."""
    torch.manual_seed(0)
    monkeypatch.setitem(make.OVERRIDES, "defaults", TINY)
    monkeypatch.setitem(train_denoiser.CONFIG, "num_layers", 1)
    tokenizer = build_tokenizer()
    vae = AutoencoderKLWan(**train_vae.CONFIG | {"base_dim": 4, "decoder_base_dim": 4, "dim_mult": [1, 1, 1, 1]})
    make.save_checkpoint(tmp_path, train_denoiser.TextToLatents(tokenizer), tokenizer, vae)
    return tmp_path


def test_a_saved_checkpoint_goes_on_from_the_picture_it_is_given_and_makes_clips_from_text_too(checkpoint):
    assert json.loads((checkpoint / "model_index.json").read_text())["expand_timesteps"] is True
    model = DiffusersModel(checkpoint)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    from_text, from_picture = (
        model.generate("a red circle growing", seed=1, image=image).frames for image in (None, picture)
    )
    vae = AutoencoderKLWan.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32)
    with torch.no_grad():
        through = vae.decode(vae.encode(train_vae.to_model(picture[None, None])).latent_dist.mode()).sample
    first = (through[0, :, 0].permute(1, 2, 0).numpy() + 1) * 127.5
    np.testing.assert_allclose(from_picture[0], first, atol=1)
    assert from_text.shape == from_picture.shape == (5, 64, 64, 3) and from_text.dtype == np.uint8
    assert np.abs(from_text[0] - first).max() > 10
