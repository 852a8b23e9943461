"""Videos from pictures at one end or both, against `WanImageToVideoPipeline`: same checkpoint, pictures, prompt, seed.

The checkpoint is a Wan 2.2 I2V-A14B in small: two transformers, and a VAE whose encoder sees the whole clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import mutoscope
import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from mutoscope.errors import RequestError
from mutoscope.request import PICTURES
from mutoscope_export.export import export_checkpoint
from mutoscope_export.families.wan.random_checkpoint import (
    MAX_SEQUENCE_LENGTH,
    SCHEDULER_OPTIONS,
    add_expert,
    random_checkpoint,
)
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.making import made_once

Frames = NDArray[np.uint8]

SAME_DB, OTHER_DB = 60.0, 30.0
CHECKPOINT: dict[str, Any] = {
    "image_to_video": True, "num_layers": 1, "latent_channels": 4,
    "vae_config": {
        "num_res_blocks": 1, "dim_mult": [1, 2, 2], "temperal_downsample": [False, True], "scale_factor_spatial": 4,
        "scale_factor_temporal": 2,
    },
}  # fmt: skip
BOUNDARY = 0.9
DEFAULTS: dict[str, Any] = {
    "prompt": "a red circle moving on a black square", "height": 32, "width": 48, "num_frames": 9,
    "num_inference_steps": 4, "guidance_scale": 5.0, "seed": 7, "scheduler": "UniPCMultistepScheduler",
}  # fmt: skip
REQUESTS: dict[str, dict[str, Any]] = {
    "UniPC, a scale for each": {"guidance_scale_2": 2.0},
    "no guidance, an odd size, few frames": {"guidance_scale": 1.0, "height": 48, "width": 16, "num_frames": 5},
    "Euler, a negative prompt, both ends": {
        "scheduler": "FlowMatchEulerDiscreteScheduler", "negative_prompt": "the blue circle", "last_image": 1,
    },
    "DPM-Solver++, a single frame": {"scheduler": "DPMSolverMultistepScheduler", "num_frames": 1},
    "noise anew after each step, both ends": {
        "scheduler": "FlowMatchLCMScheduler", "guidance_scale": 1.0, "last_image": 1,
    },
}  # fmt: skip
NAMES = {
    "UniPCMultistepScheduler": "unipc",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "FlowMatchLCMScheduler": "lcm",
}


def picture(seed: int) -> Frames:
    """Patches of colour with soft borders, in a size that no video here has; of `~seed`, in the opposite colours."""
    coarse = np.random.default_rng(max(seed, ~seed)).integers(0, 256, (5, 6, 3), np.uint8)
    coarse = coarse if seed >= 0 else 255 - coarse
    return np.asarray(Image.fromarray(coarse).resize((101, 67), Image.Resampling.BICUBIC))


def follow_pictures(checkpoint: Path) -> None:
    """Makes more of the pictures, which change little in a video of random weights, above all the last one: in the
    encoder a frame counts eight times as much as those before, and in the network its latents three times."""
    for path in checkpoint.glob("*/diffusion_pytorch_model.safetensors"):
        weights = load_file(path)
        for name, weight in weights.items():
            if name.startswith("encoder.") and weight.ndim == 5 and weight.shape[2] == 3:
                weight[:, :, -1] *= 8
            elif name == "encoder.conv_in.bias":
                weight.zero_()
            elif name == "patch_embedding.weight":
                weight[:, CHECKPOINT["latent_channels"] :] *= 3
            elif name == "proj_out.weight":
                weight *= 4
        save_file(weights, path)


def make(folder: Path) -> None:
    checkpoint = add_expert(random_checkpoint(folder / "checkpoint", **CHECKPOINT), BOUNDARY)
    follow_pictures(checkpoint)
    export_checkpoint(checkpoint, folder / "bundle")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once("image_to_video", make, tmp_path_factory)


@pytest.fixture(scope="module")
def ours(made: Path) -> Iterator[mutoscope.Pipeline]:
    with mutoscope.Pipeline.load(made / "bundle") as pipeline:
        yield pipeline


def expected_frames(made: Path, *, seed: int, scheduler: str, **request: Any) -> Frames:
    """What the pipeline of Diffusers makes, rounded to levels as Mutoscope rounds."""
    pipeline: Any = WanImageToVideoPipeline.from_pretrained(made / "checkpoint")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = getattr(diffusers, scheduler)(**SCHEDULER_OPTIONS[scheduler])
    pictures = {
        name: Image.fromarray(picture(request.pop(name))) for name in ("image", "last_image") if name in request
    }
    generator = torch.default_generator.manual_seed(seed)  # from which the pipeline lets its scheduler draw, too
    result = pipeline(
        **request, **pictures, generator=generator, output_type="np", max_sequence_length=MAX_SEQUENCE_LENGTH
    )
    frames: Frames = np.rint(255 * result.frames[0]).astype(np.uint8)
    assert 10 < frames.std() < 100  # neither grey, which would agree with anything, nor black and white
    return frames


def generated(ours: mutoscope.Pipeline, scheduler: str, **request: Any) -> Frames:
    pictures = {name: picture(request.pop(name)) for name in PICTURES if name in request}
    return ours.generate(**request, **pictures, scheduler=NAMES[scheduler], flow_shift=3.0).frames


def psnr_db(given: Frames, expected: Frames) -> float:
    error = np.square(given.astype(np.float64) - expected).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("case", REQUESTS)
def test_the_video_is_that_of_diffusers_and_of_another_picture_it_is_not(
    made: Path, ours: mutoscope.Pipeline, case: str
) -> None:
    request = DEFAULTS | {"image": 0} | REQUESTS[case]
    expected = expected_frames(made, **request)
    assert psnr_db(generated(ours, **request), expected) >= SAME_DB
    for name in request.keys() & PICTURES:
        assert psnr_db(generated(ours, **request | {name: ~request[name]}), expected) <= OTHER_DB, name


def test_it_is_run_as_the_authors_of_wan_2_2_run_it(ours: mutoscope.Pipeline) -> None:
    plan = ours.plan("a red circle", image=picture(0))
    assert (plan.schedule.num_inference_steps, plan.schedule.flow_shift) == (40, 5.0)
    assert plan.guidance.scales == {"denoiser": 3.5, "denoiser_low": 3.5}
    assert plan.schedule.first_steps == {"denoiser": 1, "denoiser_low": 16}
    assert plan.geometry.num_frames == 81
    with pytest.raises(RequestError, match="this model makes a video from a picture; give image"):
        ours.plan("a red circle")
