"""What the denoiser learns from: latents are kept, and the first frame of a pictured clip is its picture, encoded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from mutoscope_export.demo import encoding
from mutoscope_export.demo.encoding import SOFT_PICTURES, encode_clips, encode_pictured_clips
from mutoscope_export.demo.pictures import draw_pictured_clip
from mutoscope_export.demo.renderer import render_along
from mutoscope_export.demo.train_vae import to_model


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return AutoencoderKLWan(**_vae_config()).eval()


def _vae_config():
    return {
        "base_dim": 4, "decoder_base_dim": 4, "z_dim": 2, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
        "temperal_downsample": [False, True, True], "is_residual": True, "in_channels": 12, "out_channels": 12,
        "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.0, 0.0], "latents_std": [1.0, 1.0],
    }  # fmt: skip


def test_latents_are_read_back_only_for_what_they_were_made_from(vae, tmp_path, monkeypatch):
    file = tmp_path / "latents.npy"
    made = encode_clips(vae, 3, file, device="cpu", seed=0)
    monkeypatch.setattr(encoding, "render_along", None)  # from here on nothing may be drawn
    again = encode_clips(vae, 3, file, device="cpu", seed=0)
    assert again.scenes == made.scenes and np.array_equal(again.latents, made.latents)
    for count, seed in ((2, 0), (4, 0), (3, 1)):
        with pytest.raises(ValueError, match="holds 3 clips"):
            encode_clips(vae, count, file, device="cpu", seed=seed)
    other = AutoencoderKLWan(**_vae_config()).eval()
    with pytest.raises(ValueError, match="holds 3 clips"):
        encode_clips(other, 3, file, device="cpu", seed=0)


def test_latents_that_do_not_say_what_they_are_of_are_taken_when_they_are_as_many(tmp_path, vae):
    file = tmp_path / "latents.npy"
    np.save(file, np.zeros((3, 2, 5, 6, 6), np.float16))
    with pytest.raises(ValueError, match="holds 3 clips"):
        encode_clips(vae, 4, file, device="cpu", seed=0)
    assert len(encode_clips(vae, 3, file, device="cpu", seed=0).scenes) == 3
    with pytest.raises(ValueError, match="holds 3 clips"):
        encode_clips(vae, 3, file, device="cpu", seed=1)


def test_encoding_that_was_stopped_goes_on_where_it_was_and_gives_what_an_unbroken_one_gives(
    vae, tmp_path, monkeypatch
):
    monkeypatch.setattr(encoding, "TOGETHER", 2)
    monkeypatch.setattr(encoding, "SAVED_TOGETHER", 1)
    whole = encode_clips(vae, 5, tmp_path / "whole.npy", device="cpu", seed=0)
    drawn, clips = [], render_along

    def stop_in_the_second_batch(scene, path):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(scene)
        return clips(scene, path)

    monkeypatch.setattr(encoding, "render_along", stop_in_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        encode_clips(vae, 5, tmp_path / "parts.npy", device="cpu", seed=0)
    drawn.clear()
    monkeypatch.setattr(encoding, "render_along", lambda *each: drawn.append(each) or clips(*each))
    parts = encode_clips(vae, 5, tmp_path / "parts.npy", device="cpu", seed=0)
    assert len(drawn) == 3
    assert np.array_equal(parts.latents, whole.latents) and parts.scenes == whole.scenes


def test_a_pictured_clip_begins_with_its_encoded_picture_and_each_fourth_is_softer(vae, tmp_path):
    clips = encode_pictured_clips(vae, SOFT_PICTURES, tmp_path / "pictured.npy", device="cpu", seed=0)
    rng = np.random.default_rng((0, 1))
    drawn = [draw_pictured_clip(rng, held_out=False) for _ in clips.scenes]
    pictures = to_model(np.stack([render_along(each.shown, each.path)[:1] for each in drawn]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        alone = vae.encode(pictures).latent_dist.mode().float().numpy()
    off = np.abs(clips.latents[:, :, :1] - alone).max(axis=(1, 2, 3, 4))
    assert off[0] > 0.02 > off[1:].max()
    assert clips.scenes == [each.asked for each in drawn]
    assert not any(scene.held_out for scene in clips.scenes)
