"""Videos from pictures at one end or both, against `WanImageToVideoPipeline`: same checkpoint, pictures, prompt, seed.

The checkpoints are Wan 2.2 I2V-A14B, Wan 2.1 I2V-14B and Wan 2.1 FLF2V-14B in small. All have the VAE whose encoder
sees a whole clip; the first has two transformers, the others an encoder of what the pictures show.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import mutoscope
import mutoscope_export.export as exporting
import numpy as np
import onnx_ir as ir
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from mutoscope.errors import RequestError
from mutoscope.request import PICTURES
from mutoscope_export.families.family import GraphSource
from mutoscope_export.families.wan.random_checkpoint import (
    MAX_SEQUENCE_LENGTH,
    SCHEDULER_OPTIONS,
    add_expert,
    random_checkpoint,
)
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tests.comparing import psnr_db
from tests.following import follow
from tests.making import made_once

Frames = NDArray[np.uint8]

SAME_DB, OTHER_DB = 60.0, 30.0
A14B, I2V, FLF2V = "Wan 2.2 I2V-A14B", "Wan 2.1 I2V-14B", "Wan 2.1 FLF2V-14B"
CHECKPOINT: dict[str, Any] = {
    "image_to_video": True, "num_layers": 1, "latent_channels": 4,
    "vae_config": {
        "num_res_blocks": 1, "dim_mult": [1, 2, 2], "temperal_downsample": [False, True], "scale_factor_spatial": 4,
        "scale_factor_temporal": 2,
    },
}  # fmt: skip
OF_IMAGES: dict[str, dict[str, Any]] = {  # 5 tokens of each picture
    I2V: {"image_dim": 16, "added_kv_proj_dim": 24},
    FLF2V: {"image_dim": 16, "added_kv_proj_dim": 24, "pos_embed_seq_len": 10},
}
DEFAULTS: dict[str, Any] = {
    "prompt": "a red circle moving on a black square", "height": 32, "width": 48, "num_frames": 9, "image": 0,
    "num_inference_steps": 4, "guidance_scale": 5.0, "seed": 7, "scheduler": "UniPCMultistepScheduler",
}  # fmt: skip
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    (A14B, "UniPC, a scale for each", {"guidance_scale_2": 2.0}),
    (A14B, "no guidance, an odd size, few frames", {
        "guidance_scale": 1.0, "height": 48, "width": 16, "num_frames": 5,
    }),
    (A14B, "Euler, a negative prompt, both ends", {
        "scheduler": "FlowMatchEulerDiscreteScheduler", "negative_prompt": "the blue circle", "last_image": 1,
    }),
    (A14B, "DPM-Solver++, a single frame", {"scheduler": "DPMSolverMultistepScheduler", "num_frames": 1}),
    (A14B, "noise anew after each step, both ends", {
        "scheduler": "FlowMatchLCMScheduler", "guidance_scale": 1.0, "last_image": 1,
    }),
    (I2V, "UniPC", {}),
    (I2V, "Euler, no guidance, an odd size", {
        "scheduler": "FlowMatchEulerDiscreteScheduler", "guidance_scale": 1.0, "height": 48, "width": 16,
    }),
    (FLF2V, "UniPC, a negative prompt", {"last_image": 1, "negative_prompt": "the blue circle"}),
    (FLF2V, "DPM-Solver++, no guidance", {
        "scheduler": "DPMSolverMultistepScheduler", "guidance_scale": 1.0, "last_image": 1,
    }),
]  # fmt: skip
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


def follow_pictures(name: str, weight: Tensor) -> None:
    """The network makes three times as much of the latents of pictures."""
    if name == "patch_embedding.weight":
        weight[:, CHECKPOINT["latent_channels"] :] *= 3
    elif name == "proj_out.weight":
        weight *= 4


def make(kind: str, folder: Path, of_a14b: Path | None = None) -> None:
    """A checkpoint and its bundle. Its text encoder and VAE are those of an A14B where one is given, and so are their
    graphs, which are then not traced anew."""
    checkpoint = random_checkpoint(folder / "checkpoint", **CHECKPOINT, **OF_IMAGES.get(kind, {}))
    if kind == A14B:
        add_expert(checkpoint, 0.9)
    follow(checkpoint, follow_pictures)
    if of_a14b:
        for component in ("text_encoder", "vae"):
            shutil.copytree(of_a14b / "checkpoint" / component, checkpoint / component, dirs_exist_ok=True)

    def trace_source(source: GraphSource, model: Any) -> ir.Model:
        made = of_a14b and source.role != "denoiser" and of_a14b / "bundle" / source.role / "model.onnx"
        return ir.load(made) if made and made.exists() else plain_trace(source, model)

    plain_trace = exporting.trace_source
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "trace_source", trace_source)
        exporting.export_checkpoint(checkpoint, folder / "bundle")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder with the checkpoint and the bundle of each kind."""
    first = made_once("image_to_video", lambda folder: make(A14B, folder), tmp_path_factory)
    others = {
        kind: made_once(kind.replace(" ", "_"), lambda folder, kind=kind: make(kind, folder, first), tmp_path_factory)
        for kind in OF_IMAGES
    }
    return {A14B: first, **others}


@pytest.fixture(scope="module")
def ours(made: dict[str, Path]) -> Iterator[dict[str, mutoscope.Pipeline]]:
    pipelines = {kind: mutoscope.Pipeline.load(folder / "bundle") for kind, folder in made.items()}
    yield pipelines
    for pipeline in pipelines.values():
        pipeline.close()


def expected_frames(checkpoint: Path, *, seed: int, scheduler: str, prompt: str, **request: Any) -> Frames:
    """What the pipeline of Diffusers makes, rounded to levels as Mutoscope rounds.

    Beside pictures its network takes a text of 512 tokens for granted. To give it fewer, each is there several times:
    attention then mixes the same.
    """
    pipeline: Any = WanImageToVideoPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = getattr(diffusers, scheduler)(**SCHEDULER_OPTIONS[scheduler])
    pictures = {name: Image.fromarray(picture(request.pop(name))) for name in PICTURES if name in request}
    negative = request.pop("negative_prompt", None)
    embeds = pipeline.encode_prompt(
        prompt, negative, request["guidance_scale"] > 1, max_sequence_length=MAX_SEQUENCE_LENGTH
    )
    if pipeline.image_encoder is not None:
        embeds = [each if each is None else each.repeat(1, 512 // each.shape[1], 1) for each in embeds]
    generator = torch.default_generator.manual_seed(seed)  # from which the pipeline lets its scheduler draw, too
    result = pipeline(
        **request, **pictures, prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], generator=generator,
        output_type="np",
    )  # fmt: skip
    frames: Frames = np.rint(255 * result.frames[0]).astype(np.uint8)
    assert 10 < frames.std() < 100  # neither grey, which would agree with anything, nor black and white
    return frames


def generated(ours: mutoscope.Pipeline, scheduler: str, **request: Any) -> Frames:
    pictures = {name: picture(request.pop(name)) for name in PICTURES if name in request}
    return ours.generate(**request, **pictures, scheduler=NAMES[scheduler], flow_shift=3.0).frames


@pytest.mark.parametrize(("kind", "case", "asked"), REQUESTS, ids=[f"{kind}: {case}" for kind, case, _ in REQUESTS])
def test_the_video_is_that_of_diffusers_and_of_another_picture_it_is_not(
    made: dict[str, Path], ours: dict[str, mutoscope.Pipeline], kind: str, case: str, asked: dict[str, Any]
) -> None:
    request = DEFAULTS | asked
    expected = expected_frames(made[kind] / "checkpoint", **request)
    assert psnr_db(generated(ours[kind], **request), expected) >= SAME_DB
    for name in request.keys() & PICTURES:
        assert psnr_db(generated(ours[kind], **request | {name: ~request[name]}), expected) <= OTHER_DB, name


def test_a14b_is_run_as_its_authors_run_it(ours: dict[str, mutoscope.Pipeline]) -> None:
    plan = ours[A14B].plan("a red circle", image=picture(0))
    assert (plan.schedule.num_inference_steps, plan.schedule.flow_shift) == (40, 5.0)
    assert plan.guidance.scales == {"denoiser": 3.5, "denoiser_low": 3.5}
    assert plan.schedule.first_steps == {"denoiser": 1, "denoiser_low": 16}


@pytest.mark.parametrize(
    ("kind", "asked", "message"),
    [
        (A14B, {}, "image is missing: this model makes a video from a picture"),
        (I2V, {"image": 0, "last_image": 1}, "last_image is not a parameter of this model"),
        (FLF2V, {"image": 0}, "last_image is missing: this model makes a video between two pictures"),
    ],
)
def test_each_says_which_pictures_it_takes(
    ours: dict[str, mutoscope.Pipeline], kind: str, asked: dict[str, int], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        ours[kind].plan("a red circle", **{name: picture(seed) for name, seed in asked.items()})


def test_what_text_and_pictures_alone_decide_is_a_part_of_its_own(ours: dict[str, mutoscope.Pipeline]) -> None:
    for kind, fed in ((A14B, {"prompt_embeds"}), (FLF2V, {"prompt_embeds", "image_embeds"})):
        first, second = ours[kind].bundle.manifest.graphs_of("denoiser", "fp32")
        assert {tensor.name for tensor in first.inputs} == fed
        assert not fed & {tensor.name for tensor in second.inputs}
