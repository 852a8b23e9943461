"""Wan with two transformers, from checkpoint to frames, against `WanPipeline`: same weights, prompt and seed."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
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
from diffusers import WanPipeline
from mutoscope_export.checkpoint.checkpoint import Checkpoint
from mutoscope_export.families.family import GraphSource
from mutoscope_export.families.wan.random_checkpoint import MAX_SEQUENCE_LENGTH, SCHEDULER_OPTIONS, add_expert
from numpy.typing import NDArray
from torch import nn

from tests.comparing import psnr_db

Frames = NDArray[np.float64]

SAME_DB, OTHER_DB = 60.0, 30.0
SOLVERS = {"unipc": "UniPCMultistepScheduler", "euler": "FlowMatchEulerDiscreteScheduler"}
REQUEST = {
    "prompt": "a red circle moving", "negative_prompt": "the blue square: &99?", "height": 16, "width": 32,
    "num_frames": 5, "num_inference_steps": 4,
}  # fmt: skip
# So much guidance, because what a text changes in a network of random weights is little.
GUIDANCE: dict[str, dict[str, float]] = {
    "off": {"guidance_scale": 1.0},
    "one scale for both": {"guidance_scale": 30.0},
    "a scale for each": {"guidance_scale": 30.0, "guidance_scale_2": 2.0},
    "below 1 for the second": {"guidance_scale": 30.0, "guidance_scale_2": 0.5},
    "off by the first alone": {"guidance_scale": 0.5, "guidance_scale_2": 30.0},
}


@dataclass
class Two:
    """A checkpoint with two transformers in both programs."""

    bundle: Path
    loads: list[str]  # what the export loaded, and what of the networks before was in memory at that time
    ours: mutoscope.Pipeline
    reference: Any

    def frames(self, solver: str, boundary_ratio: float, *, second: Any = None, **request: Any) -> Frames:
        """Those of Diffusers in whole levels; with another second transformer where one is given."""
        name, own = SOLVERS[solver], self.reference.transformer_2
        self.reference.scheduler = getattr(diffusers, name)(**SCHEDULER_OPTIONS[name])
        self.reference.register_to_config(boundary_ratio=boundary_ratio)
        self.reference.transformer_2 = second or own
        try:
            made = self.reference(
                **REQUEST, **request, generator=torch.Generator().manual_seed(7), output_type="np",
                max_sequence_length=MAX_SEQUENCE_LENGTH,
            )  # fmt: skip
        finally:
            self.reference.transformer_2 = own
        return np.rint(255.0 * made.frames[0].astype(np.float64))


@pytest.fixture(scope="module")
def two(wan_checkpoint: Path, wan_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """`wan_checkpoint` with a second transformer. What its bundle has of the graphs is read there, not traced anew."""
    folder = tmp_path_factory.mktemp("two")
    checkpoint = add_expert(Path(shutil.copytree(wan_checkpoint, folder / "checkpoint")), 0.875)
    alive: dict[str, weakref.ref[nn.Module]] = {}
    loads: list[str] = []

    def load(opened: Checkpoint, component: str) -> nn.Module:
        loads.append(" beside ".join([component, *(name for name, network in alive.items() if network() is not None)]))
        network = plain_load(opened, component)
        alive[component] = weakref.ref(network)
        return network

    def trace_source(source: GraphSource, model: Any) -> ir.Model:
        there = wan_bundle / source.role / "model.onnx"
        return ir.load(there) if there.exists() else plain_trace(source, model)

    plain_load, plain_trace = Checkpoint.load, exporting.trace_source
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "load", load)
        patch.setattr(exporting, "trace_source", trace_source)
        exporting.export_checkpoint(checkpoint, folder / "bundle")
    reference = WanPipeline.from_pretrained(checkpoint)
    reference.set_progress_bar_config(disable=True)
    with mutoscope.Pipeline.load(folder / "bundle") as ours:
        yield Two(folder / "bundle", loads, ours, reference)


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_video_is_that_of_diffusers_and_of_no_other_switch_or_expert(two: Two, solver: str, guidance: str) -> None:
    asked = GUIDANCE[guidance]
    video = two.ours.generate(**REQUEST, **asked, scheduler=solver, flow_shift=3.0, seed=7)
    expected = two.frames(solver, 0.875, **asked)
    assert 20 < expected.std() < 90  # neither grey, which would agree with anything, nor black and white
    assert psnr_db(video.frames, expected) >= SAME_DB

    switch = video.plan.schedule.first_steps["denoiser_low"]
    assert 1 < switch < 4
    one_step_later = (video.plan.schedule.timesteps[switch - 1] - 1) / 1000
    assert psnr_db(video.frames, two.frames(solver, one_step_later, **asked)) < OTHER_DB
    first = two.reference.transformer
    assert psnr_db(video.frames, two.frames(solver, 0.875, second=first, **asked)) < OTHER_DB


@pytest.mark.parametrize(
    ("asked", "other"),
    [
        ({"guidance_scale": 30.0, "guidance_scale_2": 2.0}, {"guidance_scale": 30.0}),
        ({"guidance_scale": 30.0, "guidance_scale_2": 0.5}, {"guidance_scale": 30.0, "guidance_scale_2": 8.0}),
        ({"guidance_scale": 30.0}, {"guidance_scale": 1.0}),
    ],
)
def test_each_scale_of_guidance_counts(two: Two, asked: dict[str, float], other: dict[str, float]) -> None:
    video = two.ours.generate(**REQUEST, **asked, scheduler="unipc", flow_shift=3.0, seed=7)
    assert psnr_db(video.frames, two.frames("unipc", 0.875, **other)) < OTHER_DB


def test_the_switch_is_at_the_boundary_itself(two: Two) -> None:
    """`WanPipeline` gives the first transformer the step whose truncated timestep is the boundary, and not one more."""
    schedule = two.ours.plan(**REQUEST, scheduler="unipc", flow_shift=3.0).schedule
    assert schedule.timesteps[1] == 900.0
    there, just_above = (two.frames("unipc", ratio, guidance_scale=1.0) for ratio in (0.9, 0.9001))
    video = two.ours.generate(**REQUEST, guidance_scale=1.0, scheduler="unipc", flow_shift=3.0, seed=7)
    assert psnr_db(video.frames, there) >= SAME_DB > psnr_db(video.frames, just_above)


def test_one_transformer_is_in_memory_at_a_time_while_it_is_exported(two: Two) -> None:
    assert two.loads[:3] == ["text_encoder", "transformer", "transformer_2"]


def test_the_report_and_the_summary_have_both_experts(two: Two, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((two.bundle / "export_report.json").read_text())
    assert {"transformer", "transformer_2"} <= {each["component"] for each in report["components"]}
    assert {"denoiser", "denoiser_low"} <= {each["role"] for each in report["graphs"]}
    assert mutoscope.cli.main(["inspect", str(two.bundle)]) == 0
    printed = capsys.readouterr().out
    assert "denoiser_low.2 fp32" in printed
    assert "from timestep 875" in printed and "guidance_scale 3" in printed


def test_steps_are_cached_within_each_expert(two: Two) -> None:
    plan = two.ours.plan(**(REQUEST | {"num_inference_steps": 40}), cache_interval=3)
    assert plan.schedule.first_steps == {"denoiser": 1, "denoiser_low": 27}  # with the authors' shift of 12
    whole = two.ours.plan(**(REQUEST | {"num_inference_steps": 40})).schedule.timesteps
    assert {whole[25], whole[26], whole[27], whole[39]} <= set(plan.schedule.timesteps)
    assert sum(plan.schedule.calls.values()) == len(plan.schedule.timesteps) < 30
