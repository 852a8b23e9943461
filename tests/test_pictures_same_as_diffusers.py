"""Videos from text and from a picture by one bundle, against Diffusers: same checkpoint, picture, prompt and seed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import mutoscope
import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from mutoscope.bundle.bundle import Bundle
from mutoscope_export.export import export_checkpoint
from mutoscope_export.families.wan.random_checkpoint import (
    MAX_SEQUENCE_LENGTH,
    SCHEDULER_OPTIONS,
    VAE_2_2,
    random_checkpoint,
)
from mutoscope_export.options import ExportOptions
from numpy.typing import NDArray
from PIL import Image

from tests.comparing import psnr_db

Frames = NDArray[np.uint8]

MIN_PSNR_DB = 60.0
MAX_PSNR_DB_OF_ANOTHER = 30.0
MIN_CONTRAST = 10.0  # standard deviation in levels: a grey video would agree with anything

CHECKPOINT: dict[str, Any] = {
    "expand_timesteps": True, "num_layers": 2, "latent_channels": 6,
    "vae_config": {
        **VAE_2_2, "num_res_blocks": 1, "dim_mult": [1, 2, 2], "temperal_downsample": [True, False],
        "scale_factor_spatial": 8, "scale_factor_temporal": 2,
    },
}  # fmt: skip
DEFAULTS: dict[str, Any] = {
    "prompt": "a red circle moving on a black square", "height": 48, "width": 80, "num_frames": 5,
    "num_inference_steps": 3, "guidance_scale": 5.0, "seed": 7, "scheduler": None,
}  # fmt: skip
REQUESTS: dict[str, dict[str, Any]] = {
    "UniPC with guidance": {},
    "no guidance, odd multiples, more frames": {
        "guidance_scale": 1.0, "height": 80, "width": 48, "num_frames": 9, "num_inference_steps": 6,
    },
    "Euler, negative prompt": {"scheduler": "FlowMatchEulerDiscreteScheduler", "negative_prompt": "the blue circle"},
    "DPM-Solver++, a wide single frame": {
        "scheduler": "DPMSolverMultistepScheduler", "num_frames": 1, "height": 16, "width": 112,
    },
    "noise anew after each step": {
        "scheduler": "FlowMatchLCMScheduler", "num_inference_steps": 4, "guidance_scale": 1.0,
    },
}  # fmt: skip
NAMES = {
    "FlowMatchEulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "FlowMatchLCMScheduler": "lcm",
    None: None,
}


def picture(seed: int) -> Frames:
    """Patches of colour with soft borders, in a size that no video here has."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((101, 67), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("pictures") / "checkpoint", **CHECKPOINT)


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> Iterator[mutoscope.Pipeline]:
    export_checkpoint(checkpoint, checkpoint.parent / "bundle", ExportOptions(precision=("fp32", "bf16")))
    with mutoscope.Pipeline.load(checkpoint.parent / "bundle", precision="fp32") as pipeline:
        yield pipeline


def reference_frames(kind: type[Any], checkpoint: Path, *, seed: int, scheduler: str | None, **request: Any) -> Frames:
    """What a pipeline of Diffusers makes, rounded to levels as Mutoscope rounds."""
    pipeline = kind.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipeline.scheduler = getattr(diffusers, scheduler)(**SCHEDULER_OPTIONS[scheduler])
    generator = torch.default_generator.manual_seed(seed)  # from which the pipeline lets its scheduler draw, too
    result = pipeline(**request, generator=generator, output_type="np", max_sequence_length=MAX_SEQUENCE_LENGTH)
    frames: Frames = np.rint(255 * result.frames[0]).astype(np.uint8)
    assert frames.std() > MIN_CONTRAST
    return frames


def generated(ours: mutoscope.Pipeline, scheduler: str | None, **request: Any) -> Frames:
    return ours.generate(**request, scheduler=NAMES[scheduler]).frames


@pytest.mark.parametrize("case", REQUESTS)
def test_a_video_from_a_picture_is_that_of_diffusers_and_of_another_picture_is_not(
    checkpoint: Path, ours: mutoscope.Pipeline, case: str
) -> None:
    request = DEFAULTS | REQUESTS[case]
    expected = reference_frames(WanImageToVideoPipeline, checkpoint, **request, image=Image.fromarray(picture(0)))
    made, other = (generated(ours, **request, image=picture(seed)) for seed in (0, 1))
    assert psnr_db(made, expected) >= MIN_PSNR_DB
    assert psnr_db(other, expected) <= MAX_PSNR_DB_OF_ANOTHER


@pytest.mark.parametrize("case", list(REQUESTS)[:2])
def test_without_a_picture_the_video_is_that_of_the_text_to_video_pipeline(
    checkpoint: Path, ours: mutoscope.Pipeline, case: str
) -> None:
    request = DEFAULTS | REQUESTS[case]
    expected = reference_frames(WanPipeline, checkpoint, **request)
    assert psnr_db(generated(ours, **request), expected) >= MIN_PSNR_DB


def test_the_bundle_has_the_defaults_of_the_authors(checkpoint: Path, ours: mutoscope.Pipeline) -> None:
    defaults = Bundle.open(checkpoint.parent / "bundle").manifest.defaults
    assert (defaults.height, defaults.width, defaults.num_frames, defaults.fps) == (704, 1280, 121, 24)
    assert (defaults.num_inference_steps, defaults.guidance_scale) == (50, 5.0)
