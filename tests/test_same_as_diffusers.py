"""The whole of Mutoscope against the whole of Diffusers: same checkpoint, prompt, seed and options, same video."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import mutoscope
import numpy as np
import onnx
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
from mutoscope_export.options import ExportOptions
from numpy.typing import NDArray

from tests.comparing import psnr_db
from tests.making import made_once

Frames = NDArray[np.uint8]

MIN_PSNR_DB = 45.0  # rounding to whole levels alone leaves 59; another seed, step or prompt leaves less than 25
MIN_CONTRAST = 10.0  # standard deviation in levels: a grey video would agree with anything

SCHEDULERS = {
    "unipc": "UniPCMultistepScheduler",
    "euler": "FlowMatchEulerDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "lcm": "FlowMatchLCMScheduler",
}
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "small": {},
    "Wan 2.2's VAE, three heads, in shards, for Euler": {
        "num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 1,
        "scheduler": "FlowMatchEulerDiscreteScheduler", "max_shard_size": "40KB",
        "vae_config": {
            **VAE_2_2, "num_res_blocks": 0, "dim_mult": [1, 2, 2], "temperal_downsample": [True, False],
            "scale_factor_spatial": 8, "scale_factor_temporal": 2,
        },
    },
    "stored in bfloat16, flat patches, for DPM-Solver++": {
        "dtype": torch.bfloat16, "patch_size": (1, 1, 2), "cross_attn_norm": False, "num_layers": 1,
        "latent_channels": 6, "scheduler": "DPMSolverMultistepScheduler",
        "vae_config": {
            "num_res_blocks": 0, "dim_mult": [1, 2], "temperal_downsample": [True],
            "scale_factor_spatial": 2, "scale_factor_temporal": 2,
        },
    },
}  # fmt: skip

SMALL, WAN_2_2, BFLOAT16 = CHECKPOINTS

RED = "a red circle moving on a black square"
MESSY = "caf&eacute; &amp;amp; ﬁsh  \u201cquoted\u201d\n and â€œmojibakeâ€ &lt;b&gt; 漢字"


class Subject:
    """A checkpoint in both programs."""

    def __init__(self, checkpoint: Path, bundle: Path) -> None:
        self.checkpoint, self.bundle = checkpoint, bundle
        self.ours = mutoscope.Pipeline.load(bundle)
        self.reference = WanPipeline.from_pretrained(checkpoint)
        self.reference.set_progress_bar_config(disable=True)
        self.own_scheduler = self.reference.scheduler

    def reference_frames(self, seed: int, scheduler: str | None, **request: Any) -> NDArray[np.float32]:
        """Frames `[T, H, W, 3]` in levels 0..255, not rounded."""
        self.reference.scheduler = self.own_scheduler
        if scheduler is not None:
            name = SCHEDULERS[scheduler]
            self.reference.scheduler = getattr(diffusers, name)(**SCHEDULER_OPTIONS[name])
        generator = torch.default_generator.manual_seed(seed)  # from which the pipeline lets its scheduler draw, too
        result = self.reference(
            **request, generator=generator, output_type="np", max_sequence_length=MAX_SEQUENCE_LENGTH
        )
        frames: NDArray[np.float32] = 255 * result.frames[0]
        return frames


class Subjects:
    """The checkpoints by name, each made for the first test of this process that asks for it."""

    def __init__(self, small: Subject, factory: pytest.TempPathFactory) -> None:
        self._made = {SMALL: small}
        self._factory = factory

    def __getitem__(self, name: str) -> Subject:
        if name not in self._made:
            number = list(CHECKPOINTS).index(name)
            folder = made_once(f"same-as-diffusers-{number}", partial(_export, name), self._factory)
            self._made[name] = Subject(folder / "checkpoint", folder / "bundle")
        return self._made[name]

    def close(self) -> None:
        for subject in self._made.values():
            subject.ours.close()


def _export(name: str, folder: Path) -> None:
    checkpoint = random_checkpoint(folder / "checkpoint", **CHECKPOINTS[name])
    export_checkpoint(checkpoint, folder / "bundle")


@pytest.fixture(scope="module")
def subjects(wan_checkpoint: Path, wan_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subjects]:
    with closing(Subjects(Subject(wan_checkpoint, wan_bundle), tmp_path_factory)) as made:
        yield made


REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "UniPC with guidance": (SMALL, {"num_inference_steps": 6, "num_frames": 9, "guidance_scale": 4.0}),
    "a single frame, messy prompt": (SMALL, {"prompt": MESSY, "num_frames": 1, "num_inference_steps": 4}),
    "no guidance, odd multiples": (SMALL, {"height": 80, "width": 48, "guidance_scale": 1.0, "num_frames": 5}),
    "Euler on UniPC's checkpoint, negative prompt": (
        SMALL, {"scheduler": "euler", "negative_prompt": "the &amp; blue  circle", "guidance_scale": 2.5},
    ),
    "DPM-Solver++ on UniPC's checkpoint, large seed": (SMALL, {"scheduler": "dpmpp_2m", "seed": 2**40 + 17}),
    "noise anew after each step": (SMALL, {"scheduler": "lcm", "num_inference_steps": 4, "guidance_scale": 1.0}),
    "one step": (SMALL, {"num_inference_steps": 1, "num_frames": 1}),
    "Wan 2.2's VAE, its own Euler": (WAN_2_2, {"height": 64, "width": 96, "num_frames": 9}),
    "Wan 2.2's VAE, UniPC": (WAN_2_2, {"height": 32, "width": 64, "scheduler": "unipc", "num_inference_steps": 5}),
    "bfloat16, its own DPM-Solver++": (BFLOAT16, {"height": 16, "width": 32, "num_inference_steps": 5}),
    "bfloat16, single frame without guidance": (
        BFLOAT16, {"height": 32, "width": 16, "num_frames": 1, "guidance_scale": 0.0, "prompt": MESSY},
    ),
}  # fmt: skip
DEFAULTS = {
    "prompt": RED, "negative_prompt": None, "height": 48, "width": 80, "num_frames": 5, "num_inference_steps": 3,
    "guidance_scale": 5.0, "seed": 7, "scheduler": None,
}  # fmt: skip


@pytest.mark.parametrize("case", REQUESTS)
def test_the_video_is_that_of_diffusers(subjects: Subjects, case: str) -> None:
    name, given = REQUESTS[case]
    request = DEFAULTS | given
    expected = subjects[name].reference_frames(**request)
    video = subjects[name].ours.generate(**request)
    assert video.frames.shape == expected.shape
    assert expected.std() > MIN_CONTRAST
    assert psnr_db(video.frames, expected) >= MIN_PSNR_DB


@pytest.mark.parametrize("name", [SMALL, WAN_2_2])
def test_frames_decoded_in_tiles_are_those_of_the_whole_and_of_diffusers(subjects: Subjects, name: str) -> None:
    request = DEFAULTS | {"height": 96, "width": 80, "num_frames": 9, "guidance_scale": 1.0}
    whole = subjects[name].ours.generate(**request)
    with mutoscope.Pipeline.load(subjects[name].bundle, tile=(72, 72)) as pipeline:
        tiled = pipeline.generate(**request)
    assert (whole.plan.decoder_tiles, tiled.plan.decoder_tiles) == (1, 4)
    apart = np.abs(tiled.frames.astype(int) - whole.frames)
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3  # another kernel for another size may round another way
    assert psnr_db(tiled.frames, subjects[name].reference_frames(**request)) >= MIN_PSNR_DB


def test_cached_steps_are_those_of_diffusers_taylorseer_in_its_lite_mode(subjects: Subjects) -> None:
    request = DEFAULTS | {"num_inference_steps": 10}
    transformer = subjects[SMALL].reference.transformer
    transformer.enable_cache(
        diffusers.TaylorSeerCacheConfig(
            cache_interval=2, disable_cache_before_step=3, disable_cache_after_step=9, use_lite_mode=True,
            taylor_factors_dtype=torch.float32,
        )
    )  # fmt: skip
    try:
        expected = subjects[SMALL].reference_frames(**request)
    finally:
        transformer.disable_cache()
    whole = subjects[SMALL].reference_frames(**request)
    video = subjects[SMALL].ours.generate(**request, cache_interval=2)
    assert len(video.plan.schedule.timesteps) == 7
    assert psnr_db(video.frames, expected) >= MIN_PSNR_DB > psnr_db(video.frames, whole)


@pytest.mark.parametrize("change", [{"seed": 8}, {"prompt": "the blue square"}, {"num_inference_steps": 4}])
def test_another_request_gives_a_video_that_the_comparison_tells_apart(
    subjects: Subjects, change: dict[str, Any]
) -> None:
    expected = subjects[SMALL].reference_frames(**DEFAULTS)
    video = subjects[SMALL].ours.generate(**(DEFAULTS | change))
    assert psnr_db(video.frames, expected) < MIN_PSNR_DB - 5


def test_guidance_in_two_calls_gives_the_same_frames(subjects: Subjects) -> None:
    together = subjects[SMALL].ours.generate(**DEFAULTS)
    with mutoscope.Pipeline.load(subjects[SMALL].bundle, branches_per_call=1) as pipeline:
        apart = pipeline.generate(**DEFAULTS)
    assert (together.plan.branches_per_call, apart.plan.branches_per_call) == (2, 1)
    assert np.abs(together.frames.astype(int) - apart.frames.astype(int)).max() <= 1


def test_int8_stays_close_to_fp32(subjects: Subjects) -> None:
    """Close, not equal: the largest weights have a hundredth of their precision."""
    request = DEFAULTS | {"guidance_scale": 1.0}
    exact = subjects[SMALL].ours.generate(**request).frames
    another = subjects[SMALL].ours.generate(**(request | {"seed": 8})).frames
    with mutoscope.Pipeline.load(subjects[SMALL].bundle, precision="int8") as pipeline:
        rounded = pipeline.generate(**request).frames
    found = psnr_db(rounded, exact.astype(np.float32))
    assert psnr_db(another, exact.astype(np.float32)) + 10 < found < 70


def test_a_compact_bundle_gives_the_same_frames(subjects: Subjects, tmp_path: Path) -> None:
    full = subjects[BFLOAT16]
    compact = export_checkpoint(full.checkpoint, tmp_path / "compact", ExportOptions(compact=True))
    graphs = [onnx.load(path, load_external_data=False).graph for path in compact.root.glob("denoiser/*.onnx")]
    stored = [tensor for graph in graphs for tensor in graph.initializer]
    large = [tensor for tensor in stored if tensor.name.startswith("transformer.") and math.prod(tensor.dims) >= 256]
    assert large and all(tensor.data_type != onnx.TensorProto.FLOAT for tensor in large)
    request = DEFAULTS | {"height": 16, "width": 32}
    with mutoscope.Pipeline.load(compact.root) as pipeline:
        np.testing.assert_array_equal(pipeline.generate(**request).frames, full.ours.generate(**request).frames)
