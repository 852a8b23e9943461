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
from diffusers import WanPipeline
from mutoscope_export.export import export_checkpoint
from mutoscope_export.families.wan.random_checkpoint import (
    MAX_SEQUENCE_LENGTH,
    SCHEDULER_OPTIONS,
    VAE_2_2,
    random_checkpoint,
)
from numpy.typing import NDArray

MIN_PSNR_DB = 60.0  # of frames as they are before they are rounded to levels

CHECKPOINT: dict[str, Any] = {
    "expand_timesteps": True, "num_layers": 1, "latent_channels": 6,
    "vae_config": {
        **VAE_2_2, "num_res_blocks": 0, "dim_mult": [1, 2, 2], "temperal_downsample": [True, False],
        "scale_factor_spatial": 8, "scale_factor_temporal": 2,
    },
}  # fmt: skip
REQUEST: dict[str, Any] = {
    "prompt": "a red circle moving on a black square", "height": 48, "width": 80, "num_frames": 5,
    "num_inference_steps": 3, "guidance_scale": 5.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("pictures") / "checkpoint", **CHECKPOINT)


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> Iterator[mutoscope.Pipeline]:
    export_checkpoint(checkpoint, checkpoint.parent / "bundle")
    with mutoscope.Pipeline.load(checkpoint.parent / "bundle") as pipeline:
        yield pipeline


def test_without_a_picture_the_video_is_that_of_the_text_to_video_pipeline(
    checkpoint: Path, ours: mutoscope.Pipeline
) -> None:
    reference = WanPipeline.from_pretrained(checkpoint)
    reference.set_progress_bar_config(disable=True)
    result = reference(
        **REQUEST, generator=torch.Generator().manual_seed(7), output_type="np", max_sequence_length=MAX_SEQUENCE_LENGTH
    )
    video = ours.generate(**REQUEST, seed=7)
    expected = 255 * result.frames[0]
    error = np.square(video.frames - expected).mean()
    print(expected.std(), 10 * np.log10(255**2 / error))
