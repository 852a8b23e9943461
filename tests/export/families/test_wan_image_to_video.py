"""Checkpoints of image-to-video pipelines: what their manifests say, what is refused, and the networks' modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from mutoscope.bundle.conditionings import ImageConditioning, ImageEmbedsConditioning
from mutoscope.bundle.manifest import Expert, Manifest
from mutoscope.pictures import CLIP_PIXELS
from mutoscope_export.declaration import declared_manifest
from mutoscope_export.errors import ExportError
from mutoscope_export.families.wan import image_tokens, whole_clip
from mutoscope_export.families.wan.image_encoder import ImageEncoder
from mutoscope_export.families.wan.random_checkpoint import add_expert, random_checkpoint
from mutoscope_export.opening import open_checkpoint
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from tests.export.families.test_wan_denoiser import CONFIGS, random_transformer
from tests.export.spoiling import edit

TINY_VAE = {
    "num_res_blocks": 0, "dim_mult": [1, 2], "temperal_downsample": [True], "scale_factor_spatial": 2,
    "scale_factor_temporal": 2,
}  # fmt: skip
SIZES = {"B": 2, "L": 8, "F": 3, "h": 6, "w": 8, "K": 3}
TWO_PICTURES = {"image_dim": 16, "added_kv_proj_dim": 24, "pos_embed_seq_len": 10}


def manifest_of(checkpoint: Path) -> Manifest:
    return declared_manifest(open_checkpoint(checkpoint))


def made(folder: Path, **transformer: Any) -> Path:
    return random_checkpoint(folder, image_to_video=True, num_layers=1, vae_config=TINY_VAE, **transformer)


def test_a14b_follows_one_picture_or_two_within_a_clip(tmp_path: Path) -> None:
    manifest = manifest_of(add_expert(made(tmp_path / "a14b"), 0.9))
    assert manifest.images == (
        ImageConditioning(
            name="image", role="vae_encoder_first", following="vae_encoder_next", feeds={"condition": "condition"},
            given="given", last="last_image",
        ),
    )  # fmt: skip
    assert manifest.experts == (
        Expert(role="denoiser", above=900.0), Expert(role="denoiser_low", guidance_scale=3.5),
    )  # fmt: skip
    defaults = manifest.defaults
    assert (defaults.guidance_scale, defaults.num_inference_steps, defaults.flow_shift) == (3.5, 40, 5.0)


def test_flf2v_needs_both_pictures_and_shows_them_to_clip(tmp_path: Path) -> None:
    manifest = manifest_of(made(tmp_path / "flf2v", **TWO_PICTURES))
    (image,), (embeds,) = manifest.images, manifest.image_embeds
    assert (image.required, image.last, image.last_required) == (True, "last_image", True)
    assert embeds == ImageEmbedsConditioning(
        name="image", last="last_image", role="image_encoder", feeds={"image_embeds": "image_embeds"}
    )
    assert manifest.followed == ("prompt", "negative_prompt", "image", "last_image")
    assert (manifest.defaults.height, manifest.defaults.width, manifest.defaults.guidance_scale) == (720, 1280, 5.5)


def test_an_image_encoder_with_the_names_of_older_files_is_taken(tmp_path: Path) -> None:
    checkpoint = made(tmp_path / "i2v", image_dim=16, added_kv_proj_dim=24)
    file = checkpoint / "image_encoder" / "model.safetensors"
    older = {f"vision_model.{name}": weight for name, weight in load_file(file).items()}
    save_file(older, file, {"format": "pt"})
    opened = open_checkpoint(checkpoint)
    assert [each.last for each in opened.description.conditionings if isinstance(each, ImageConditioning)] == [None]
    assert isinstance(opened.load("image_encoder"), CLIPVisionModel)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("transformer", {"in_channels": 4}, "in_channels of the transformer is 4, out_channels 4; supported"),
        ("transformer", {"in_channels": 11}, "in_channels of the transformer is 11, what out_channels and the VAE"),
        ("transformer", {"image_dim": None}, "image_dim None and added_kv_proj_dim 24; in image-to"),
        ("transformer", {"image_dim": 8}, "image_dim of the transformer is 8, of the image encoder 16"),
        ("transformer", {"pos_embed_seq_len": 514}, "pos_embed_seq_len of the transformer is 514; it must be 10"),
        ("image_encoder", {"image_size": 336}, "image_size of the image encoder is 336; supported is 224"),
        ("image_processor", {"resample": 2}, "the image processor has .'resample': 2.; supported"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(tmp_path: Path, file: str, change: dict[str, Any], message: str) -> None:
    checkpoint = made(tmp_path / "flf2v", **TWO_PICTURES)
    name = "preprocessor_config.json" if file == "image_processor" else "config.json"
    edit(checkpoint / file / name, lambda config: config.update(change))
    with pytest.raises(ExportError, match=message):
        open_checkpoint(checkpoint)


def test_a_configuration_that_promises_an_image_encoder_to_a14b_is_refused(tmp_path: Path) -> None:
    """As one version of the published I2V-A14B has it, whose weights have no such layers."""
    checkpoint = add_expert(made(tmp_path / "a14b"), 0.9)
    edit(checkpoint / "transformer" / "config.json", lambda config: config.update(image_dim=1280))
    with pytest.raises(ExportError, match=r"config of a transformer has .'image_dim': 1280.; in image-to-video"):
        open_checkpoint(checkpoint)


def expected_step(transformer: WanTransformer3DModel, inputs: dict[str, torch.Tensor], **images: Any) -> Any:
    """Next state by Diffusers and float64 NumPy; each frame of the mask is written down by hand."""
    mask = inputs["given"][..., None, None].repeat(1, 1, *inputs["latents"].shape[2:])
    seen = torch.cat([inputs["latents"], mask, inputs["condition"]])
    with torch.no_grad():
        velocities = transformer(
            seen.expand(2, -1, -1, -1, -1), inputs["timestep"].expand(2), inputs["prompt_embeds"], **images
        ).sample
    values = {name: value.double().numpy() for name, value in inputs.items()}
    velocity = np.einsum("b,b...->...", values["guidance_weights"], velocities.double().numpy())
    moved = np.einsum("ij,j...->i...", values["solver_a"], values["state"])
    return moved + np.multiply.outer(values["solver_b"], velocity)


def test_the_step_with_a_clip_is_that_of_diffusers() -> None:
    transformer = random_transformer(**CONFIGS["wan"] | {"in_channels": 12, "out_channels": 4})
    inputs = whole_clip.example_inputs(transformer, SIZES, seed=1)
    with torch.no_grad():
        next_state, _ = whole_clip.ClipStep(transformer)(**inputs)
    expected = expected_step(transformer, inputs)
    np.testing.assert_allclose(next_state, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("pictures", [1, 2])
def test_the_step_with_tokens_of_pictures_is_that_of_diffusers_at_any_length_of_the_text(pictures: int) -> None:
    """Diffusers takes the last 512 tokens for the text. A softmax over tokens that each are there n times is that over
    one of each, so 64 times 8 tokens are the same text as 8."""
    config = CONFIGS["wan"] | {"in_channels": 12, "out_channels": 4}
    width = config["num_attention_heads"] * config["attention_head_dim"]  # type: ignore[operator]
    config |= {"image_dim": 16, "added_kv_proj_dim": width, "pos_embed_seq_len": 14 if pictures == 2 else None}
    transformer = random_transformer(**config)
    inputs = image_tokens.example_inputs(transformer, SIZES, tokens=7 * pictures)
    with torch.no_grad():
        next_state, _ = image_tokens.ClipAndImageStep(transformer)(**inputs)
    images = inputs.pop("image_embeds").reshape(pictures, 7, 16).repeat(2, 1, 1)
    short = inputs["prompt_embeds"]
    expected = expected_step(
        transformer, inputs | {"prompt_embeds": short.repeat(1, 64, 1)}, encoder_hidden_states_image=images
    )
    np.testing.assert_allclose(next_state, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    other = expected_step(
        transformer, inputs | {"prompt_embeds": short.repeat(1, 64, 1)}, encoder_hidden_states_image=-images
    )
    assert np.abs(other - expected).max() > 0.01 * np.abs(expected).max()


def test_the_image_encoder_gives_the_hidden_states_before_the_last_layer() -> None:
    torch.manual_seed(0)
    model = CLIPVisionModel(CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=224,
        patch_size=112, hidden_act="gelu",
    ))  # fmt: skip
    pixels = torch.randn(2, 3, CLIP_PIXELS, CLIP_PIXELS)
    with torch.no_grad():
        hidden = model(pixels, output_hidden_states=True).hidden_states
        made = ImageEncoder(model)(pixels)
    torch.testing.assert_close(made, hidden[-2].flatten(0, 1), rtol=0, atol=1e-5)
    assert float((made - hidden[-1].flatten(0, 1)).abs().max()) > 1e-3
