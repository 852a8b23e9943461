"""Videos that follow a clip, a mask and reference pictures, against `WanVACEPipeline`: same checkpoint, prompt, seed.

The checkpoint is Wan 2.1 VACE in small.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import mutoscope
import numpy as np
import pytest
import torch
from diffusers import WanVACEPipeline
from mutoscope.cli import main
from mutoscope_export.export import export_checkpoint
from mutoscope_export.families.wan.random_checkpoint import (
    MAX_SEQUENCE_LENGTH,
    SCHEDULER_OPTIONS,
    random_checkpoint,
)
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tests.comparing import psnr_db
from tests.following import follow
from tests.making import made_once
from tests.runtime.test_clips import lossless

Frames = NDArray[np.uint8]

SAME_DB, OTHER_DB = 60.0, 30.0
CHECKPOINT: dict[str, Any] = {
    "num_layers": 3, "vace_layers": [0, 2], "latent_channels": 4,
    "vae_config": {
        "num_res_blocks": 1, "dim_mult": [1, 2, 2], "temperal_downsample": [False, True], "scale_factor_spatial": 4,
        "scale_factor_temporal": 2,
    },
}  # fmt: skip
EULER, UNIPC = "FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"
NAMES = {UNIPC: "unipc", EULER: "euler"}
DEFAULTS: dict[str, Any] = {
    "prompt": "a red circle moving on a black square", "height": 32, "width": 48, "num_frames": 9,
    "num_inference_steps": 4, "guidance_scale": 5.0, "seed": 7, "scheduler": UNIPC,
}  # fmt: skip
REQUESTS: dict[str, dict[str, Any]] = {
    "a clip": {"video": 0},
    "a clip and a mask, Euler, no guidance": {"video": 0, "mask": 1, "scheduler": EULER, "guidance_scale": 1.0},
    "a clip, a mask and two references": {"video": 0, "mask": 1, "reference_images": [2, 3]},
    "a reference, Euler, an odd size, few frames": {
        "reference_images": [2], "scheduler": EULER, "height": 48, "width": 16, "num_frames": 5,
    },
    "a clip of one frame, a wide one": {"video": 0, "num_frames": 1, "height": 16, "width": 64},
    "a clip and a reference, a scale for each layer, no guidance": {
        "video": 0, "reference_images": [3], "conditioning_scale": [0.5, 1.5], "guidance_scale": 1.0,
    },
    "nothing but a prompt": {"negative_prompt": "the blue circle"},
    "nothing but a prompt, Euler, no guidance, less control": {
        "scheduler": EULER, "guidance_scale": 1.0, "conditioning_scale": 0.5,
    },
}  # fmt: skip
ATTENDING = ("attn1.norm_q.weight", "attn1.to_v.weight", "attn1.to_out.0.weight")
FOLLOWED = ("video", "mask", "reference_images")


def clip(seed: int, request: dict[str, Any]) -> Frames:
    """Patches of colour with soft borders, which change from frame to frame, in twice the size of the video.

    Of `~seed`, in the opposite colours.
    """
    coarse = np.random.default_rng(max(seed, ~seed)).integers(0, 256, (request["num_frames"], 4, 5, 3), np.uint8)
    coarse = coarse if seed >= 0 else 255 - coarse
    size = 2 * request["width"], 2 * request["height"]
    return np.stack([Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC) for frame in coarse])


def mask(seed: int, request: dict[str, Any]) -> Frames:
    """The same in greys."""
    return np.repeat(clip(seed, request)[..., :1], 3, axis=3)


def picture(seed: int) -> Frames:
    """One frame of such a clip in bright colours, of `~seed` in dark ones, in a size that is a multiple of nothing."""
    bright = 128 + clip(max(seed, ~seed), {"num_frames": 1, "height": 33, "width": 50 + seed % 2})[0, 1:, 1:] // 2
    return bright if seed >= 0 else 255 - bright


def given(request: dict[str, Any]) -> dict[str, Any]:
    """The request with its clip, mask and pictures in place of their seeds."""
    made: dict[str, Any] = {"video": clip, "mask": mask}
    found = {name: made[name](seed, request) for name, seed in request.items() if name in made}
    if "reference_images" in request:
        found["reference_images"] = tuple(map(picture, request["reference_images"]))
    return request | found


def other(request: dict[str, Any], name: str) -> dict[str, Any]:
    """The request with one of its conditions in the opposite colours."""
    seeds = request[name]
    return request | {name: [~seed for seed in seeds] if isinstance(seeds, list) else ~seeds}


def follow_control(name: str, weight: Tensor) -> None:
    """The network makes four times as much of the control. What is in references alone reaches the video by
    self-attention, so it attends to fewer tokens, and more."""
    if name in ("vace_patch_embedding.weight", "proj_out.weight") or name.endswith(ATTENDING):
        weight *= 4


def make(folder: Path) -> None:
    checkpoint = random_checkpoint(folder / "checkpoint", **CHECKPOINT)
    follow(checkpoint, follow_control)
    export_checkpoint(checkpoint, folder / "bundle")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the checkpoint and its bundle."""
    return made_once("vace", make, tmp_path_factory)


@pytest.fixture(scope="module")
def ours(made: Path) -> Iterator[mutoscope.Pipeline]:
    with mutoscope.Pipeline.load(made / "bundle") as pipeline:
        yield pipeline


def expected_frames(checkpoint: Path, *, seed: int, scheduler: str, **request: Any) -> Frames:
    """What the pipeline of Diffusers makes, rounded to levels as Mutoscope rounds."""
    pipeline: Any = WanVACEPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = getattr(diffusers, scheduler)(**SCHEDULER_OPTIONS[scheduler])
    clips = {name: [Image.fromarray(each) for each in request[name]] for name in FOLLOWED if name in request}
    result = pipeline(
        **request | clips, generator=torch.Generator().manual_seed(seed), output_type="np",
        max_sequence_length=MAX_SEQUENCE_LENGTH,
    )  # fmt: skip
    frames: Frames = np.rint(255 * result.frames[0]).astype(np.uint8)
    assert 10 < frames.std() < 110  # neither grey, which would agree with anything, nor black and white
    return frames


def generated(ours: mutoscope.Pipeline, scheduler: str, **request: Any) -> Frames:
    return ours.generate(**request, scheduler=NAMES[scheduler]).frames


@pytest.mark.parametrize("case", REQUESTS)
def test_the_video_is_that_of_diffusers_and_with_another_condition_it_is_not(
    made: Path, ours: mutoscope.Pipeline, case: str
) -> None:
    request = DEFAULTS | REQUESTS[case]
    expected = expected_frames(made / "checkpoint", **given(request))
    assert psnr_db(generated(ours, **given(request)), expected) >= SAME_DB
    for name in [name for name in FOLLOWED if name in request]:
        assert psnr_db(generated(ours, **given(other(request, name))), expected) <= OTHER_DB, name


def test_the_command_takes_files_and_says_what_it_follows(
    made: Path, ours: mutoscope.Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = DEFAULTS | REQUESTS["a clip, a mask and two references"]
    files = given(request)
    (tmp_path / "clip.mkv").write_bytes(lossless(files["video"]))
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, pixels in zip(paths, (files["mask"][0], *files["reference_images"]), strict=True):
        Image.fromarray(pixels).save(path)
    words = [
        request["prompt"], "--bundle", str(made / "bundle"), "--video", str(tmp_path / "clip.mkv"), "--mask",
        str(paths[0]), "--reference-images", *map(str, paths[1:]), "--conditioning-scale", "1,0.5", "--seed", "7",
        "--num-inference-steps", "2", "--height", "32", "--width", "48",
    ]  # fmt: skip
    assert main(["generate", *words, "-o", str(tmp_path / "made.npy")]) == 0
    asked = {name: files[name] for name in ("prompt", "seed", "height", "width", "video", "reference_images")}
    expected = ours.generate(**asked, mask=files["mask"][0], num_inference_steps=2, conditioning_scale=(1.0, 0.5))
    np.testing.assert_array_equal(np.load(tmp_path / "made.npy"), expected.frames)
    capsys.readouterr()
    assert main(["generate", *words, "--explain"]) == 0
    plan = capsys.readouterr().out
    assert re.search(r"^video +96x64x9 sha256:", plan, re.M) and re.search(r"^mask +96x64 sha256:", plan, re.M)
    assert re.search(r"^reference_images +\d+x65 sha256:\w+, \d+x65 sha256:", plan, re.M)
    assert re.search(r"^conditioning_scale +1, 0.5$", plan, re.M)
    assert main(["inspect", str(made / "bundle")]) == 0
    assert "video, mask, reference_images, conditioning_scale" in capsys.readouterr().out
