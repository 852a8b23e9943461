"""The trainings of the built-in model in small: the loop, the optimiser, the grammar, the tokenizer, the renderer."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutoscope_export.demo import make
from mutoscope_export.demo.grammar import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    PHRASINGS,
    SHAPES,
    SIZES,
    Scene,
    all_scenes,
    prompt_pattern,
    sample_scenes,
)
from mutoscope_export.demo.muon import orthogonalise
from mutoscope_export.demo.renderer import draw_trajectory, render
from mutoscope_export.demo.text import MAX_SEQUENCE_LENGTH, build_tokenizer
from mutoscope_export.demo.train_vae import SHAPE_WEIGHT, weighted_errors
from mutoscope_export.demo.training import Training, TrainingSchedule, averaged_weights, read_record
from torch import nn
from transformers import AutoTokenizer

SCHEDULE = TrainingSchedule(steps=12, warmup_steps=3)


class _StoppedError(Exception):
    pass


def _train(folder, *, stop_after=None, save_every_s=240.0):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    training = Training(module, SCHEDULE, folder, save_every_s=save_every_s)

    def loss_of_step(step):
        if step == stop_after:
            raise _StoppedError
        generator = torch.Generator().manual_seed(step)
        given, wanted = (torch.randn(5, width, generator=generator) for width in (6, 3))
        return {"loss": (module(given) - wanted).square().mean()}

    training.run(loss_of_step, report_every=1)
    return training


def _stop_and_resume(folder):
    with pytest.raises(_StoppedError):
        _train(folder, stop_after=5, save_every_s=-1.0)
    return _train(folder)


def test_a_training_stopped_and_resumed_equals_an_unbroken_one(tmp_path):
    unbroken, resumed = _train(tmp_path / "unbroken"), _stop_and_resume(tmp_path / "stopped")
    torch.testing.assert_close(resumed.averaged, unbroken.averaged, rtol=0, atol=0)
    torch.testing.assert_close(resumed.module.state_dict(), unbroken.module.state_dict(), rtol=0, atol=0)


def test_a_training_keeps_the_two_states_before_its_newest(tmp_path):
    with pytest.raises(_StoppedError):
        _train(tmp_path, stop_after=8, save_every_s=-1.0)
    states = [torch.load(tmp_path / name, weights_only=True) for name in ("state.pt", "state.1.pt", "state.2.pt")]
    assert [state["step"] for state in states] == [8, 7, 6]
    torch.testing.assert_close(averaged_weights(tmp_path), states[0]["averaged"], rtol=0, atol=0)


def test_a_training_killed_after_its_last_saving_has_each_step_once_in_its_record(tmp_path):
    with pytest.raises(_StoppedError):
        _train(tmp_path, stop_after=3, save_every_s=-1.0)
    with pytest.raises(_StoppedError):
        _train(tmp_path, stop_after=8)
    assert [row["step"] for row in read_record(tmp_path)][-1] == 8
    _train(tmp_path)
    assert [row["step"] for row in read_record(tmp_path)] == list(range(1, SCHEDULE.steps + 1))


def test_after_a_training_small_numbers_are_numbers_again_even_when_it_failed(tmp_path):
    _train(tmp_path)
    assert float(torch.tensor(1e-30) * torch.tensor(1e-10)) != 0.0
    with pytest.raises(_StoppedError):
        _train(tmp_path / "stopped", stop_after=0)
    assert float(torch.tensor(1e-30) * torch.tensor(1e-10)) != 0.0


@pytest.mark.parametrize("shape", [(48, 12), (12, 48), (24, 24)])
def test_what_muon_makes_orthogonal_has_singular_values_near_one(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    if shape[0] == shape[1]:  # a random square matrix may be all but singular; this one is not
        matrices = matrices + 12 * torch.eye(shape[0])
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3


def test_a_vae_that_was_not_wholly_saved_is_not_taken_for_finished(tmp_path, monkeypatch):
    def save_half(folder):
        folder.mkdir(parents=True)
        raise OSError("disk full")

    monkeypatch.setattr(make, "train_vae", lambda *_, **__: SimpleNamespace(save_pretrained=save_half))
    arguments = SimpleNamespace(start_from=None, work=tmp_path, vae_steps=1, whole_clip_steps=1, device="cpu", seed=0)
    with pytest.raises(OSError, match="disk full"):
        make.make_vae(arguments)
    assert not list(tmp_path.rglob("finished"))


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize(("shape_weight", "near"), [(SHAPE_WEIGHT, 5.0), (0.0, 1.0)])
def test_errors_up_to_four_pixels_beside_a_shape_count_more(width, shape_weight, near):
    """How much a pixel counts is how fast the mean grows with the error there."""
    clip = torch.full((1, 3, 2, 24, 24), -0.9)
    clip[:, 1, 0, 10 : 10 + width, 10 : 10 + width] = 0.5
    counts = torch.ones_like(clip)
    counts[:, :, 0, 6 : 14 + width, 6 : 14 + width] = near
    error = torch.full_like(clip, 0.5, requires_grad=True)  # where both grow alike
    for mean in weighted_errors(error, clip, shape_weight):
        (growth,) = torch.autograd.grad(mean, error, retain_graph=True)
        torch.testing.assert_close(growth * error.numel(), counts)


@pytest.mark.parametrize("length", [1, 99, 500, 501])
def test_a_thinned_record_keeps_evaluations_and_ends_with_its_last_row_once(length, tmp_path):
    rows = [{"step": step} | ({"psnr_db": 1.0} if step % 77 == 0 else {}) for step in range(1, length + 1)]
    for name in ("vae", "denoiser"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make.write_record(tmp_path / "results" / "record.json", tmp_path, {"figure": 2.5})
    record = json.loads((tmp_path / "results" / "record.json").read_text())
    assert record["figure"] == 2.5
    steps = [row["step"] for row in record["vae"]]
    assert steps == sorted(set(steps)) and steps[0] == 1 and steps[-1] == length and len(steps) <= 120
    assert {step for step in range(77, length + 1, 77)} <= set(steps)


def _matches(prompt):
    return re.fullmatch(prompt_pattern(), prompt) is not None


@pytest.mark.parametrize("phrasing", range(len(PHRASINGS)))
def test_the_pattern_accepts_every_scene_in_every_phrasing_that_training_writes(phrasing):
    for scene in all_scenes()[::7]:
        prompt = scene.prompt(phrasing)
        for written in (prompt, prompt.replace("a orange", "an orange"), prompt[0].upper() + prompt[1:], prompt + "."):
            assert _matches(written), written


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a red circle",
        "a pink circle moving left on a black background",
        "a red dog moving left on a black background",
        "a red circle moving sideways on a black background",
        "a red circle moving left on a pink background",
        "a huge red circle moving left on a black background",
        "a red circle moving left on a black background and a dog",
        "two red circles moving left on a black background",
        "a red circle moving left on a black background\n",
        "no a red circle moving left on a black background",
        "a RED circle moving left on a black background",
    ],
)
def test_the_pattern_rejects_what_the_model_was_not_trained_for(prompt):
    assert not _matches(prompt)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_each_word_of_the_grammar_is_one_token(tokenizer):
    words = " ".join([*COLOURS, *SHAPES, *MOTIONS, *BACKGROUNDS, *filter(None, SIZES), "a", "on", "background"]).split()
    for word in [*words, *(word.capitalize() for word in words)]:
        *pieces, end = tokenizer(word).input_ids
        assert len(pieces) == 1 and end == tokenizer.eos_token_id, word
        assert pieces[0] != tokenizer.unk_token_id
    assert len({tokenizer(word).input_ids[0] for word in set(words)}) == len(set(words))


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=80))
def test_any_text_can_be_encoded(tokenizer, text):
    ids = tokenizer(text, truncation=True, max_length=MAX_SEQUENCE_LENGTH).input_ids
    assert 1 <= len(ids) <= MAX_SEQUENCE_LENGTH
    assert ids[-1] == tokenizer.eos_token_id
    assert all(0 <= index < len(tokenizer) for index in ids)


def test_the_tokenizer_read_back_equals_itself(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    restored = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*(scene.prompt() for scene in all_scenes()[::300]), "", "Zoë's  dog, 2 cats!", "漢字 </s>"):
        assert restored(text).input_ids == tokenizer(text).input_ids


@pytest.mark.parametrize("colour", COLOURS)
def test_rendered_colours_are_within_12_levels_of_the_grammar(colour):
    rng = np.random.default_rng(2)
    for background, levels in BACKGROUNDS.items():
        clip = render(Scene(colour, "square", "staying still", background), rng)
        shape = np.median(clip[np.abs(clip.astype(int) - levels).max(axis=-1) > 40], axis=0)
        assert np.abs(shape - COLOURS[colour]).max() <= 12
        assert np.abs(np.median(clip[:, :4], axis=(0, 1, 2)) - levels).max() <= 12


def test_shapes_stay_inside_the_frame():
    rng = np.random.default_rng(3)
    for scene in sample_scenes(200, rng, all_scenes()):
        path = draw_trajectory(scene, rng)
        for centre in (path.x, path.y):
            assert (centre - path.radius > 0).all() and (centre + path.radius < 96).all(), scene
    clip = render(Scene("red", "square", "bouncing", "black", "large"), rng)
    edges = np.concatenate([clip[:, 0], clip[:, -1], clip[:, :, 0], clip[:, :, -1]])
    assert edges.max() < 40


def test_about_a_tenth_of_the_scenes_is_held_out():
    assert 0.08 < np.mean([scene.held_out for scene in all_scenes()]) < 0.12
