"""Videos that begin from another, against `WanVideoToVideoPipeline`: same checkpoint, video, strength, prompt, seed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import mutoscope
import mutoscope.cli
import mutoscope_export.export as exporting
import numpy as np
import onnx_ir as ir
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanVideoToVideoPipeline
from mutoscope_export.families.family import GraphSource
from mutoscope_export.families.wan.random_checkpoint import (
    MAX_SEQUENCE_LENGTH,
    SCHEDULER_OPTIONS,
    VAE_2_2,
    random_checkpoint,
)
from mutoscope_export.options import ExportOptions
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.comparing import psnr_db
from tests.making import made_once
from tests.runtime.test_clips import lossless

Frames = NDArray[np.uint8]

SAME_DB, OTHER_DB = 60.0, 30.0
T2V, TI2V = "Wan 2.1 T2V", "Wan 2.2 TI2V-5B"
VAE: dict[str, Any] = {
    "num_res_blocks": 1, "dim_mult": [1, 2], "temperal_downsample": [True], "scale_factor_spatial": 2,
    "scale_factor_temporal": 2,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    T2V: {"vae_config": VAE},
    TI2V: {"vae_config": VAE_2_2 | VAE | {"dim_mult": [1, 1], "scale_factor_spatial": 4}, "expand_timesteps": True},
}
UNIPC, EULER = "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"
DPM, LCM = "DPMSolverMultistepScheduler", "FlowMatchLCMScheduler"
NAMES = {UNIPC: "unipc", EULER: "euler", DPM: "dpmpp_2m", LCM: "lcm"}
DEFAULTS: dict[str, Any] = {
    "prompt": "a red circle moving on a black square", "height": 32, "width": 48, "video": (0, 9), "strength": 0.5,
    "num_inference_steps": 6, "guidance_scale": 5.0, "seed": 7, "scheduler": UNIPC,
}  # fmt: skip
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    (T2V, "UniPC, half of the steps", {}),
    (T2V, "UniPC, most of the steps, no guidance", {"strength": 0.7, "guidance_scale": 1.0}),
    (T2V, "Euler, a third of the steps, a negative prompt", {
        "scheduler": EULER, "strength": 0.34, "negative_prompt": "the blue circle",
    }),
    (T2V, "Euler, most of the steps, no guidance", {"scheduler": EULER, "strength": 0.7, "guidance_scale": 1.0}),
    (T2V, "DPM-Solver++, another size, a few frames", {"scheduler": DPM, "height": 48, "width": 16, "video": (0, 5)}),
    (T2V, "noise anew after each step, one frame", {
        "scheduler": LCM, "guidance_scale": 1.0, "strength": 0.34, "video": (0, 1),
    }),
    (T2V, "a frame too many for a whole latent", {"video": (0, 6)}),
    (TI2V, "UniPC", {}),
]  # fmt: skip


def clip(seed: int, count: int) -> Frames:
    """Patches of colour that move, in a size that no video here has; of `~seed`, in the opposite colours."""
    coarse = np.random.default_rng(max(seed, ~seed)).integers(0, 256, (5, 6, 3), np.uint8)
    coarse = coarse if seed >= 0 else 255 - coarse
    whole = Image.fromarray(coarse).resize((101 + 2 * count, 67), Image.Resampling.BICUBIC)
    return np.stack([np.asarray(whole)[:, 2 * start : 2 * start + 101] for start in range(count)])


def follow_the_clip(checkpoint: Path) -> None:
    """Makes more of the clip, of which little is left in a video of random weights: the encoder gives larger latents,
    and the network changes them less."""
    path = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["encoder.conv_in.bias"].zero_()
    weights["encoder.conv_out.weight"] *= 6
    save_file(weights, path)
    path = checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["proj_out.weight"] *= 0.25
    save_file(weights, path)


def make(kind: str, folder: Path, other: Path | None = None) -> None:
    """A checkpoint and its bundle. Its text encoder is that of another one where it is given, and so is that graph,
    which is then not traced anew."""
    checkpoint = random_checkpoint(folder / "checkpoint", num_layers=1, **KINDS[kind])
    follow_the_clip(checkpoint)

    def trace_source(source: GraphSource, model: Any) -> ir.Model:
        if other and source.role == "text_encoder":
            return ir.load(other / "bundle" / source.role / "model.onnx")
        return plain_trace(source, model)

    if other:
        shutil.copytree(other / "checkpoint" / "text_encoder", checkpoint / "text_encoder", dirs_exist_ok=True)
    plain_trace = exporting.trace_source
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "trace_source", trace_source)
        exporting.export_checkpoint(checkpoint, folder / "bundle", ExportOptions(video_input=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder with the checkpoint and the bundle of each kind."""
    first = made_once("video_to_video", lambda folder: make(T2V, folder), tmp_path_factory)
    second = made_once("video_to_video_2_2", lambda folder: make(TI2V, folder, first), tmp_path_factory)
    return {T2V: first, TI2V: second}


@pytest.fixture(scope="module")
def ours(made: dict[str, Path]) -> Iterator[dict[str, mutoscope.Pipeline]]:
    pipelines = {kind: mutoscope.Pipeline.load(folder / "bundle") for kind, folder in made.items()}
    yield pipelines
    for pipeline in pipelines.values():
        pipeline.close()


def expected_frames(checkpoint: Path, *, seed: int, scheduler: str, video: tuple[int, int], **request: Any) -> Frames:
    """What the pipeline of Diffusers makes, rounded to levels as Mutoscope rounds."""
    pipeline: Any = WanVideoToVideoPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae_scale_factor_spatial = pipeline.vae.config.scale_factor_spatial  # it takes patches for one pixel
    pipeline.scheduler = getattr(diffusers, scheduler)(**SCHEDULER_OPTIONS[scheduler])
    generator = torch.default_generator.manual_seed(seed)  # from which the pipeline lets its scheduler draw, too
    result = pipeline(
        **request, video=[Image.fromarray(frame) for frame in clip(*video)], generator=generator, output_type="np",
        max_sequence_length=MAX_SEQUENCE_LENGTH,
    )  # fmt: skip
    frames: Frames = np.rint(255 * result.frames[0]).astype(np.uint8)
    assert 10 < frames.std() < 100  # neither grey, which would agree with anything, nor black and white
    return frames


def generated(ours: mutoscope.Pipeline, scheduler: str, video: tuple[int, int], **request: Any) -> Frames:
    return ours.generate(**request, video=clip(*video), scheduler=NAMES[scheduler], flow_shift=3.0).frames


@pytest.mark.parametrize(("kind", "case", "asked"), REQUESTS, ids=[f"{kind}: {case}" for kind, case, _ in REQUESTS])
def test_the_video_is_that_of_diffusers_and_of_another_clip_it_is_not(
    made: dict[str, Path], ours: dict[str, mutoscope.Pipeline], kind: str, case: str, asked: dict[str, Any]
) -> None:
    request = DEFAULTS | asked
    expected = expected_frames(made[kind] / "checkpoint", **request)
    assert psnr_db(generated(ours[kind], **request), expected) >= SAME_DB
    seed, count = request["video"]
    assert psnr_db(generated(ours[kind], **request | {"video": (~seed, count)}), expected) <= OTHER_DB


def test_a_bundle_that_takes_a_video_still_makes_one_from_a_picture(
    made: dict[str, Path], ours: dict[str, mutoscope.Pipeline]
) -> None:
    request: dict[str, Any] = {
        "prompt": "a red circle", "height": 32, "width": 48, "num_inference_steps": 3, "num_frames": 5,
        "guidance_scale": 5.0,
    }  # fmt: skip
    pipeline: Any = WanImageToVideoPipeline.from_pretrained(made[TI2V] / "checkpoint")
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline(
        **request, image=Image.fromarray(clip(0, 1)[0]), generator=torch.Generator().manual_seed(7), output_type="np",
        max_sequence_length=MAX_SEQUENCE_LENGTH,
    )  # fmt: skip
    video = ours[TI2V].generate(**request, image=clip(0, 1)[0], seed=7)
    assert video.plan.conditions.encoders == ("text_encoder", "vae_encoder_first")
    assert psnr_db(video.frames, np.rint(255 * result.frames[0]).astype(np.uint8)) >= SAME_DB


def test_the_command_line_makes_the_same_video_of_a_file(
    made: dict[str, Path], ours: dict[str, mutoscope.Pipeline], tmp_path: Path
) -> None:
    source, target = tmp_path / "clip.mkv", tmp_path / "changed.npy"
    source.write_bytes(lossless(clip(0, 5), rate=12))
    asked = ["--video", source, "--strength", 0.5, "--num-inference-steps", 4, "--seed", 7, "-o", target]
    asked += ["--height", 32, "--width", 48]
    code = mutoscope.cli.main(["generate", "a red circle", "--bundle", *map(str, [made[T2V] / "bundle", *asked])])
    request: dict[str, Any] = {"strength": 0.5, "num_inference_steps": 4, "seed": 7, "height": 32, "width": 48}
    assert code == 0
    video = ours[T2V].generate("a red circle", video=clip(0, 5), **request)
    np.testing.assert_array_equal(np.load(target), video.frames)


def test_more_strength_keeps_less_of_the_clip(ours: dict[str, mutoscope.Pipeline]) -> None:
    def made_of(seed: int, strength: float) -> Frames:
        return generated(ours[T2V], **DEFAULTS | {"strength": strength, "video": (seed, 9)})

    alike = [psnr_db(made_of(0, strength), made_of(1, strength)) for strength in (0.2, 0.5, 1.0)]
    assert alike == sorted(alike)
