"""Ranges of a small network, against the same computed from its definition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import mutoscope.builtin
import mutoscope_export.demo
import numpy as np
import pytest
import torch
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.manifest import Defaults
from mutoscope.clips import identity_of, read_clip
from mutoscope.errors import RequestError
from mutoscope.pictures import read_picture
from mutoscope_export.demo.grammar import calibration_prompts
from mutoscope_export.errors import ExportError
from mutoscope_export.families.family import Call, Recording, Reference
from mutoscope_export.families.policy import QuantizedLayers
from mutoscope_export.opening import open_checkpoint
from mutoscope_export.options import ExportOptions
from mutoscope_export.quantization.calibration import DEFAULT_PROMPTS, calibrate, plan_calibration
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from tests.runtime.test_clips import lossless

BUILTIN = Path(mutoscope.builtin.__file__).parent / "bundle"
CHECKPOINT = Path(mutoscope_export.demo.__file__).parent / "checkpoint"
DEFAULTS = Defaults(
    height=64, width=96, num_frames=9, num_inference_steps=20, guidance_scale=5.0, fps=8, negative_prompt="blurry",
    scheduler="unipc",
)  # fmt: skip
MANIFEST = msgspec.structs.replace(Bundle.open(BUILTIN, verify=False).manifest, defaults=DEFAULTS)
OF_TEXT = msgspec.structs.replace(MANIFEST, conditionings=MANIFEST.texts)


class Network(nn.Module):
    """Called as Diffusers calls a denoiser."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.linear = Attention(), nn.Linear(2, 2)

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self.linear(self.attention(hidden_states * encoder_hidden_states.mean()))


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, -2 * x, 3 * x)


def reference(prompts: int = 2, steps: int = 12) -> tuple[Reference, list[Tensor]]:
    """Whole runs with two branches, the positive first; and what every call was given, times the mean of its text."""
    torch.manual_seed(0)
    network, given = Network(), []

    def run(prompt: int) -> None:
        for step in range(steps):
            latents = torch.randn(1, 2, 5, 2) * (1 + step)
            for branch in (1.0, -0.5):
                text = torch.full((1, 3, 4), branch * (1 + prompt))
                given.append(latents * text.mean())
                network(hidden_states=latents, timestep=torch.tensor([1000 - step]), encoder_hidden_states=text)

    def each(calls: Sequence[Call]) -> list[Recording]:
        return [Recording(call, (call,)) for call in calls]

    return Reference("denoiser", network, [partial(run, prompt) for prompt in range(prompts)], each), given


LAYERS = QuantizedLayers(("linear",), ("attention",))


def test_ranges_cover_every_step_prompt_and_branch() -> None:
    runs, given = reference()
    ranges = calibrate(runs, LAYERS)
    every = torch.cat(given)
    for spread, factor in zip(ranges.attentions["attention"], (1, 2, 3), strict=True):
        assert spread.largest == pytest.approx(factor * float(every.abs().max()))
        assert spread.mean == pytest.approx(factor * float(every.abs().mean()), rel=1e-5)
    mixed = F.scaled_dot_product_attention(every, -2 * every, 3 * every)
    assert ranges.linears["linear"].largest == pytest.approx(float(mixed.abs().max()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reference_that_overflows_is_refused(value: float) -> None:
    runs, _ = reference()
    linear = runs.network.linear
    linear.bias.data[0] = value
    linear.register_forward_pre_hook(lambda layer, arguments: (arguments[0] * layer.bias,))
    with pytest.raises(ExportError, match="NaN or infinity"):
        calibrate(runs, LAYERS)


def test_it_records_what_the_network_got_in_an_early_a_middle_and_a_late_step_of_the_first_run() -> None:
    runs, _ = reference(steps=6)  # in two calls each
    recordings = calibrate(runs, LAYERS).recordings
    assert [float(recording.inputs["timestep"]) for recording in recordings] == [999, 997, 995]
    for recording in recordings:
        assert recording.inputs["timestep"].dtype == torch.float32  # which was an integer
        assert recording.inputs["hidden_states"].shape == (1, 2, 5, 2)


def test_what_every_call_is_given_is_recorded_once() -> None:
    runs, _ = reference(steps=6)
    [run, *_] = runs.runs
    seen: list[Sequence[Call]] = []

    def each(calls: Sequence[Call]) -> list[Recording]:
        seen.append(calls)
        return [Recording(call, (call,)) for call in calls]

    calibrate(replace(runs, runs=[run], steps=each), LAYERS)
    [calls] = seen
    assert len(calls) == 12
    assert len({call["encoder_hidden_states"].data_ptr() for call in calls}) == 2  # one for each branch
    assert len({call["hidden_states"].data_ptr() for call in calls}) == 6


def test_a_network_that_the_runs_never_reach_is_named() -> None:
    runs = replace(reference()[0], role="denoiser_low", runs=[lambda: None])
    with pytest.raises(ExportError, match="never reach the denoiser_low of the checkpoint; raise calibration_steps"):
        calibrate(runs, LAYERS)


def test_calibration_is_at_the_checkpoints_defaults_with_the_prompts_of_its_authors() -> None:
    planned = plan_calibration(ExportOptions(), MANIFEST)
    assert (planned.prompts, planned.request) == (DEFAULT_PROMPTS, DEFAULTS)
    assert plan_calibration(ExportOptions(), MANIFEST, ["a red ring"]).prompts == ("a red ring",)
    assert planned.to_dict()["negative_prompt"] == "blurry" and planned.to_dict()["num_frames"] == 9


def picture(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, (size, 2 * size, 3), np.uint8)


def test_clips_go_with_prompts_in_turn_at_the_size_of_the_videos(tmp_path: Path) -> None:
    (tmp_path / "clip.mkv").write_bytes(lossless(np.stack([picture(32), picture(32) // 2])))
    Image.fromarray(picture(24)).save(tmp_path / "picture.png")
    files = [str(tmp_path / "clip.mkv"), tmp_path / "picture.png"]
    options = ExportOptions(calibration_clips=files, calibration_prompts=["a", "b", "c"], calibration_size=(32, 64, 5))
    planned = plan_calibration(options, MANIFEST)
    np.testing.assert_array_equal(planned.clip(0), [picture(32)] + 4 * [picture(32) // 2])
    np.testing.assert_array_equal(planned.clip(2), planned.clip(0))
    still = planned.clip(1)
    assert still.shape == (5, 32, 64, 3) and (still[0] == still[4]).all()
    expected = [read_clip(files[0]).frames(), [picture(24)]]
    assert planned.to_dict()["clips"] == [identity_of(expected[0]), read_picture(picture(24)).identity]


def test_without_clips_each_prompt_has_a_drawn_one_and_a_model_of_text_alone_has_none() -> None:
    planned = plan_calibration(ExportOptions(), MANIFEST)
    assert planned.to_dict()["clips"] == "drawn"
    assert planned.clip(0).shape == (9, 64, 96, 3) and (planned.clip(0) != planned.clip(1)).any()
    assert "clips" not in plan_calibration(ExportOptions(), OF_TEXT).to_dict()


def test_a_model_between_two_pictures_is_calibrated_with_more_than_one_frame() -> None:
    between = msgspec.structs.replace(MANIFEST.images[0], last="last_image", last_required=True)
    manifest = msgspec.structs.replace(MANIFEST, conditionings=(*MANIFEST.texts, between))
    with pytest.raises(RequestError, match="the length of calibration_size must be more than 1"):
        plan_calibration(ExportOptions(calibration_size=(64, 96, 1)), manifest)


@pytest.mark.parametrize(
    ("clips", "complaint"),
    [
        ([], "calibration_clips must be a tuple of pictures and clips"),
        ("first.png", "calibration_clips must be a tuple of pictures and clips, .* got 'first.png'"),
        (["no-such.png"], "calibration_clips is not there: 'no-such.png'"),
        ([picture(24)] * 2, "has 2 clips for 1 prompts, and each takes one; give as many prompts"),
    ],
)  # fmt: skip
def test_clips_that_no_video_would_follow_are_refused(clips: Any, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        plan_calibration(ExportOptions(calibration_clips=clips, calibration_prompts=["a fox"]), MANIFEST)


def test_clips_for_a_model_of_text_alone_are_refused() -> None:
    with pytest.raises(RequestError, match="calibration_clips is for models that take pictures or clips, and this one"):
        plan_calibration(ExportOptions(calibration_clips=[picture(24)]), OF_TEXT)


def test_the_built_in_model_is_calibrated_with_prompts_that_it_understands() -> None:
    overrides = open_checkpoint(CHECKPOINT).overrides
    assert overrides.calibration_prompts == tuple(calibration_prompts())
    assert overrides.demonstration is not None
    assert all(map(overrides.demonstration.understands, overrides.calibration_prompts))


def test_options_take_the_place_of_defaults_and_blank_lines_are_no_prompts() -> None:
    options = ExportOptions(
        calibration_prompts=["a fox", " ", "a cat\n"], calibration_size=(128, 96, 5), calibration_steps=4
    )
    planned = plan_calibration(options, MANIFEST, ["a dog"])
    assert planned.prompts == ("a fox", "a cat")
    assert planned.request == msgspec.structs.replace(DEFAULTS, height=128, num_frames=5, num_inference_steps=4)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            ExportOptions(calibration_size=(65, 96, 9)),
            "the height of calibration_size must be a multiple of 32; got 65; nearest: 64, 96",
        ),
        (
            ExportOptions(calibration_size=(64, 96, 8)),
            "the length of calibration_size must be 1 more than a multiple of 4; got 8; nearest: 5, 9",
        ),
        (ExportOptions(calibration_size=(64, 96)), "calibration_size must be .*height, width, num_frames"),  # type: ignore[arg-type]
        (ExportOptions(calibration_steps=0), "calibration_steps must be a whole number from 1 to 1000; got 0"),
        (ExportOptions(calibration_prompts=["", " "]), "calibration_prompts has no prompt; give at least one"),
        (ExportOptions(calibration_prompts=[]), "calibration_prompts has no prompt; give at least one"),
        (ExportOptions(calibration_prompts="a fox"), "must be a sequence of prompts; got one text, 'a fox'"),
    ],
)
def test_what_cannot_be_run_is_refused(options: ExportOptions, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        plan_calibration(options, MANIFEST)
