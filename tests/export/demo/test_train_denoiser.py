"""One step of the denoiser's training: a given first frame is clean, at timestep 0, and carries no loss."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from mutoscope_export.demo import train_denoiser
from mutoscope_export.demo.encoding import Clips
from mutoscope_export.demo.grammar import Scene
from mutoscope_export.demo.text import build_tokenizer
from mutoscope_export.demo.train_denoiser import (
    CONFIG,
    Noised,
    TextToLatents,
    levels_of_frames,
    losses,
    trained_so_far,
)
from mutoscope_export.demo.training import averaged_weights
from PIL import Image

CHECKPOINT = Path(train_denoiser.__file__).parent / "checkpoint"
LATENTS = (16, 5, 6, 6)
TOKENS_OF_A_FRAME = 9
CAPTION = "a red circle moving left on a black background"


def _hear(transformer):
    heard = []
    transformer.register_forward_pre_hook(lambda _, given, named: heard.append((given, named)), with_kwargs=True)
    return heard


def test_the_model_is_fed_as_the_image_pipeline_of_diffusers_feeds_it():
    published = {name: part for name, part in diffusers.WanPipeline.from_pretrained(
        CHECKPOINT, dtype=torch.float32).components.items() if part is not None}  # fmt: skip
    pipeline = diffusers.WanImageToVideoPipeline(**published, expand_timesteps=True)
    pipeline.set_progress_bar_config(disable=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    heard = _hear(pipeline.transformer)
    noise = torch.randn((1, *LATENTS), generator=torch.Generator().manual_seed(0))
    pipeline(
        picture, CAPTION, height=96, width=96, num_frames=17, num_inference_steps=1, guidance_scale=1.0,
        latents=noise, max_sequence_length=64, output_type="latent",
    )  # fmt: skip
    ((_, theirs),) = heard

    clean = noise.clone()  # so that it stays the same noise at any level
    clean[:, :, :1] = theirs["hidden_states"][:, :, :1]
    level = theirs["timestep"].max()[None] / 1000
    model = TextToLatents(build_tokenizer())
    model.start_from(CHECKPOINT)
    heard = _hear(model.transformer)
    tokens = pipeline.tokenizer(CAPTION, return_tensors="pt")
    levels = levels_of_frames(level, 5, torch.tensor([True]))
    with torch.no_grad():
        model(torch.lerp(clean, noise, levels[:, None, :, None, None]), levels, tokens.input_ids, tokens.attention_mask)
    (((latents, timestep, prompt_embeds), _),) = heard
    torch.testing.assert_close(latents, theirs["hidden_states"])
    torch.testing.assert_close(timestep, theirs["timestep"].float())
    torch.testing.assert_close(prompt_embeds, theirs["encoder_hidden_states"])
    assert timestep[0, :TOKENS_OF_A_FRAME].eq(0).all() and timestep[0, TOKENS_OF_A_FRAME:].eq(level * 1000).all()
    assert not torch.equal(latents[:, :, 0], noise[:, :, 0])


def test_a_given_frame_has_no_part_in_the_loss_and_every_other_frame_has_the_same():
    generator = torch.Generator().manual_seed(0)
    velocity, clean, noise = (torch.randn((3, *LATENTS), generator=generator) for _ in range(3))
    velocity.requires_grad_()
    pictured = torch.tensor([True, False, True])
    levels = levels_of_frames(torch.tensor([0.3, 0.8, 1.0]), 5, pictured)
    found = losses(velocity, Noised(clean, noise, levels), pictured)
    found["loss"].backward()
    assert velocity.grad[pictured, :, 0].eq(0).all()
    errors = (velocity - (noise - clean)).detach()
    counted = 13 * errors[0, :, 0].numel()  # of 15 frames, two are given
    expected = 2 * errors / counted
    expected[pictured, :, 0] = 0
    torch.testing.assert_close(velocity.grad, expected)
    torch.testing.assert_close(found["from_text"], errors[1].square().mean())
    torch.testing.assert_close(found["from_pictures"], errors[pictured][:, :, 1:].square().mean())


def test_equal_levels_of_all_frames_are_one_level_of_the_clip():
    torch.manual_seed(0)
    model = TextToLatents(build_tokenizer()).eval()
    text = build_tokenizer()([CAPTION, CAPTION], return_tensors="pt")
    latents, level = torch.randn((2, *LATENTS)), torch.tensor([0.2, 0.9])
    with torch.no_grad():
        one, each = (
            model(latents, levels, text.input_ids, text.attention_mask)
            for levels in (level, levels_of_frames(level, 5, torch.tensor([False, False])))
        )
    torch.testing.assert_close(each, one, atol=1e-5, rtol=1e-5)


@pytest.fixture
def short_training(monkeypatch, tmp_path):
    """Runs the training to a step, with four clips of random latents in each pool."""
    monkeypatch.setitem(CONFIG, "num_layers", 1)
    monkeypatch.setattr(train_denoiser, "BATCH_SIZE", 4)
    pools = {}
    for index, name in enumerate(("encode_clips", "encode_pictured_clips")):
        latents = np.random.default_rng(index).standard_normal((4, *LATENTS)).astype(np.float16)
        pools[name] = Clips(latents, [Scene("red", "circle", "growing", "black")] * 4)
        monkeypatch.setattr(train_denoiser, name, lambda *_, name=name, **__: pools[name])
    fed, forward = [], TextToLatents.forward

    def heard(self, latents, levels, *tokens):
        fed.append((latents, levels))
        return forward(self, latents, levels, *tokens)

    monkeypatch.setattr(TextToLatents, "forward", heard)

    def run(steps):
        model, _ = train_denoiser.train_denoiser(
            torch.nn.Identity(), tmp_path, steps=steps, clip_count=4, device="cpu", seed=0
        )
        return model, pools["encode_pictured_clips"].latents, fed, tmp_path

    return run


def test_half_of_a_batch_has_its_first_frame_given_clean(short_training):
    _, pictured, fed, _ = short_training(1)
    ((latents, levels),) = fed
    assert levels[:2, 0].eq(0).all()
    given = latents[:2, :, 0].numpy()
    assert all(any(np.array_equal(each, known) for known in pictured[:, :, 0].astype(np.float32)) for each in given)
    assert all(len(set(row.tolist())) == 1 and row[0] > 0 for row in (*levels[:2, 1:], *levels[2:]))


def test_a_training_goes_on_where_it_stopped_and_its_model_can_be_taken_from_the_folder(short_training):
    short_training(1)
    model, _, fed, folder = short_training(2)
    assert len(fed) == 2
    assert not any(torch.equal(one, other) for (one, _), (other, _) in pairwise(fed))
    taken, _ = trained_so_far(folder)
    torch.testing.assert_close(taken.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert averaged_weights(folder).keys() == model.state_dict().keys()
