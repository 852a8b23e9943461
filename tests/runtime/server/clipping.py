"""Bundles whose models take clips, masks, references or LoRAs, for a fake backend, and clips for them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.conditionings import ControlConditioning, ImageConditioning, VideoConditioning
from safetensors.numpy import save_file

from tests.bundles import Q, graphs, interfaces, lora_form, tensors
from tests.runtime.conditions.encoding import encoder_ends
from tests.runtime.conftest import MANIFEST
from tests.runtime.server.picturing import written
from tests.runtime.test_clips import lossless

FRAMES = np.random.default_rng(1).integers(0, 256, (10, 40, 60, 3), np.uint8)
CLIP, OTHER_CLIP = lossless(FRAMES, 10), lossless(255 - FRAMES, 10)
ENCODERS = {"role": "vae_encoder_first", "following": "vae_encoder_next"}


def bundle_that_edits(root: Path) -> Bundle:
    """A model that may be given a picture or a clip, to change it or to go on from it."""
    ends = interfaces() | encoder_ends()
    inputs, outputs = ends["denoiser"]
    ends["denoiser"] = (inputs + tensors(seen=(4, 1, "h", "w"), given=("F",)), outputs)
    image = ImageConditioning(
        name="image", role="vae_encoder_first", feeds={"condition": "seen"}, given="given", required=False
    )
    return _written(root, image, VideoConditioning(name="video", **ENCODERS), graphs=graphs(ends))


def bundle_with_control(root: Path) -> Bundle:
    """A model that may be given a clip, a mask and references."""
    ends = interfaces() | encoder_ends()
    inputs, outputs = ends["denoiser"]
    ends["denoiser"] = (inputs + tensors(control=(72, "F", "h", "w"), control_scale=(3,)), outputs)
    control = ControlConditioning(
        name="video", mask="mask", references="reference_images", scale="conditioning_scale", layers=3,
        feeds={"condition": "control"}, scale_input="control_scale", **ENCODERS,
    )  # fmt: skip
    return _written(root, control, graphs=graphs(ends))


def bundle_with_loras(root: Path) -> Bundle:
    """A model that follows a prompt alone, and takes LoRAs."""
    return _written(root, lora_forms=(lora_form(),))


def write_lora(path: Path, seed: int = 0) -> None:
    """One that fits `bundle_with_loras`."""
    random, stem = np.random.default_rng(seed), f"transformer.{Q.removesuffix('.weight')}"
    halves = {f"{stem}.lora_A.weight": (2, 6), f"{stem}.lora_B.weight": (4, 2)}
    save_file({name: random.standard_normal(shape, np.float32) for name, shape in halves.items()}, path)


def probed(video: bytes, folder: Path) -> tuple[int, str]:
    """How many frames ffprobe counts in a video, and their rate."""
    path = folder / "probed"
    path.write_bytes(video)
    said = subprocess.run(
        ["ffprobe", "-v", "error", "-count_frames", "-select_streams", "v", "-show_entries",
         "stream=nb_read_frames,avg_frame_rate", "-of", "json", path],
        capture_output=True, check=True,
    )  # fmt: skip
    [stream] = json.loads(said.stdout)["streams"]
    return int(stream["nb_read_frames"]), stream["avg_frame_rate"]


def _written(root: Path, *conditionings: Any, **changes: Any) -> Bundle:
    conditionings = (*MANIFEST.conditionings, *conditionings)
    return written(root, msgspec.structs.replace(MANIFEST, conditionings=conditionings, demonstration=None, **changes))
