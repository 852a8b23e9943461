"""Calibration of models that follow pictures and clips, against whole runs of Diffusers' pipelines with the same."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline, WanVACEPipeline
from mutoscope.bundle.contract import DENOISE, stage_of
from mutoscope_export.declaration import declared_manifest
from mutoscope_export.export import trace_source, write_form
from mutoscope_export.families.family import GraphSource, Recording
from mutoscope_export.families.wan.graph_sources import kind_of
from mutoscope_export.families.wan.random_checkpoint import MAX_SEQUENCE_LENGTH, add_expert, random_checkpoint
from mutoscope_export.graphs.weight_files import WeightFolder
from mutoscope_export.lora_forms import changed_by_lora, with_lora_forms
from mutoscope_export.opening import OpenedCheckpoint, open_checkpoint
from mutoscope_export.options import ExportOptions
from mutoscope_export.parity import compare, record
from mutoscope_export.quantization.calibration import Ranges, plan_calibration
from mutoscope_export.quantization.quantize import Quantization, calibrated, quality_table, quantize
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tests.export.families.test_wan_image_to_video import TINY_VAE

HEIGHT, WIDTH, FRAMES = 16, 32, 5
PROMPTS = ["a red circle", "the blue square moving", "a circle", "a black square"]
VAE = {**TINY_VAE, "num_res_blocks": 1}  # without residual blocks it has no encoder
OF_IMAGE = {"image_to_video": True, "image_dim": 16, "added_kv_proj_dim": 24}
Pictures = list[Image.Image]


@dataclass(frozen=True)
class Kind:
    """A model in small, and how its authors' pipeline makes the video of a prompt, by its number."""

    transformer: dict[str, Any]
    pipeline: Callable[[int], type[Any]]
    followed: Callable[[Pictures, int], dict[str, Any]]
    steps: int = 2
    guidance: float = 5.0
    shift: float = 3.0
    tokens: int = MAX_SEQUENCE_LENGTH
    prompts: int = 2


def of_control(clip: Pictures, number: int) -> dict[str, Any]:
    """A box in the middle of half the height and width is made anew."""
    box = Image.new("RGB", (WIDTH, HEIGHT))
    box.paste("white", (WIDTH // 4, HEIGHT // 4, WIDTH - WIDTH // 4, HEIGHT - HEIGHT // 4))
    return [
        {"video": clip, "mask": [box] * FRAMES, "reference_images": [clip[0]]},
        {"video": clip},
        {"reference_images": [clip[0]]},
        {},
    ][number]


KINDS = {
    "Wan 2.2 I2V-A14B": Kind(
        {"image_to_video": True},
        lambda number: WanImageToVideoPipeline,
        lambda clip, number: {"image": clip[0]} | ({"last_image": clip[-1]} if number == 1 else {}),
        steps=6, guidance=3.5, shift=5.0,
    ),
    "Wan 2.1 I2V": Kind(
        OF_IMAGE, lambda number: WanImageToVideoPipeline, lambda clip, number: {"image": clip[0]}, tokens=512
    ),
    "Wan 2.1 FLF2V": Kind(
        {**OF_IMAGE, "pos_embed_seq_len": 10},
        lambda number: WanImageToVideoPipeline,
        lambda clip, number: {"image": clip[0], "last_image": clip[-1]},
        guidance=5.5, tokens=512,
    ),
    "Wan 2.2 TI2V-5B": Kind(
        {"expand_timesteps": True},
        lambda number: WanPipeline if number == 1 else WanImageToVideoPipeline,
        lambda clip, number: {} if number == 1 else {"image": clip[0]},
    ),
    "Wan 2.1 VACE": Kind({"vace_layers": [0, 1, 2]}, lambda number: WanVACEPipeline, of_control, prompts=4),
}  # fmt: skip


def clip(number: int) -> NDArray[np.uint8]:
    """Patches of colour with soft borders, which change from frame to frame, in the size of the calibration."""
    coarse = np.random.default_rng(number).integers(0, 256, (FRAMES, 3, 4, 3), np.uint8)
    soft = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(frame).resize((WIDTH, HEIGHT), soft)) for frame in coarse])


def options(kind: str, first_clip: int = 0) -> ExportOptions:
    prompts = PROMPTS[: KINDS[kind].prompts]
    return ExportOptions(
        calibration_prompts=prompts,
        calibration_size=(HEIGHT, WIDTH, FRAMES),
        calibration_steps=KINDS[kind].steps,
        calibration_clips=[clip(first_clip + number) for number in range(len(prompts))],
    )


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration") / "checkpoint"
    made = random_checkpoint(folder, num_layers=3, vae_config=VAE, **KINDS[kind].transformer)
    return add_expert(made, 0.9) if kind == "Wan 2.2 I2V-A14B" else made


@dataclass(frozen=True)
class Found:
    """Of one denoiser: its ranges, and what the module of its graph and its own class make of each recorded step.

    Without frames that are given: the module leaves them as they are, and the class computes something of no use.
    """

    ranges: Ranges
    velocities: list[tuple[Tensor, Tensor]]


def found(checkpoint: Path, asked: ExportOptions) -> dict[str, Found]:
    opened = open_checkpoint(checkpoint)
    planned = plan_calibration(asked, declared_manifest(opened))
    made = {}
    for reference, ranges in calibrated(opened, planned, lambda stage: None):
        module = kind_of(opened).step(reference.network)  # type: ignore[arg-type]
        velocities = []
        for recording in ranges.recordings:
            given = recording.inputs.get("given", torch.zeros(0, 0))
            first = int(given.sum()) if given.ndim == 1 else 0
            for branch, call in enumerate(recording.calls):
                pair = velocity(module, recording, branch), reference.network(**call, return_dict=False)[0][0]
                velocities.append((pair[0][:, first:], pair[1][:, first:]))
        made[reference.role] = Found(ranges, velocities)
    return made


def velocity(module: nn.Module, recording: Recording, branch: int) -> Tensor:
    """What the graph's module makes of one branch of a recorded step: the state after it, where it was zeros before."""
    given = dict(recording.inputs)
    prompt = given.pop("prompt_embeds")[branch : branch + 1]
    latents, timestep = given.pop("latents"), given.pop("timestep")
    state, ones = torch.zeros(1, *latents.shape), torch.ones(1)
    with torch.no_grad():
        next_state, _ = module(latents, state, timestep, prompt, ones, torch.zeros(1, 1), ones, *given.values())
    return next_state[0]


@pytest.fixture(scope="module")
def ours(kind: str, checkpoint: Path) -> dict[str, Found]:
    return found(checkpoint, options(kind))


@dataclass(frozen=True)
class Watched:
    """Of one transformer: the largest value that each layer read, and what it was called with in the first run."""

    largest: dict[str, float]
    calls: list[Mapping[str, Any]]


def watch(network: nn.Module) -> Watched:
    watched = Watched(defaultdict(float), [])
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):

            def see(layer: Any, given: Any, name: str = name) -> None:
                watched.largest[name] = max(watched.largest[name], float(given[0].abs().max()))

            layer.register_forward_pre_hook(see)
    network.register_forward_pre_hook(lambda module, given, named: watched.calls.append(named), with_kwargs=True)
    return watched


@pytest.fixture(scope="module")
def theirs(kind: str, checkpoint: Path) -> dict[str, Watched]:
    """By role, of whole runs with all of the pipeline in memory."""
    case, networks, watched = KINDS[kind], dict[str, nn.Module](), dict[str, Watched]()
    for number, prompt in enumerate(PROMPTS[: case.prompts]):
        pipeline: Any = case.pipeline(number).from_pretrained(checkpoint)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler.register_to_config(flow_shift=case.shift)
        for role, component in (("denoiser", "transformer"), ("denoiser_low", "transformer_2")):
            if (network := getattr(pipeline, component)) is None:
                continue
            if role not in networks:
                networks[role], watched[role] = network, watch(network)
            setattr(pipeline, component, networks[role])
        pictures = [Image.fromarray(frame) for frame in clip(number)]
        pipeline(
            prompt=prompt, negative_prompt="", height=HEIGHT, width=WIDTH, num_frames=FRAMES,
            num_inference_steps=case.steps, guidance_scale=case.guidance, max_sequence_length=case.tokens,
            generator=torch.Generator().manual_seed(number), output_type="latent", **case.followed(pictures, number),
        )  # fmt: skip
        if number == 0:
            first = {role: list(of_role.calls) for role, of_role in watched.items()}
    return {role: Watched(of_role.largest, first[role]) for role, of_role in watched.items()}


def test_it_reads_what_whole_runs_with_the_same_pictures_read(
    ours: dict[str, Found], theirs: dict[str, Watched]
) -> None:
    assert ours.keys() == theirs.keys()
    for role, watched in theirs.items():
        largest = {name: spread.largest for name, spread in ours[role].ranges.linears.items()}
        assert largest and largest == pytest.approx({name: watched.largest[name] for name in largest}, rel=1e-5)


def test_it_records_what_the_pipeline_calls_its_network_with(
    ours: dict[str, Found], theirs: dict[str, Watched]
) -> None:
    for role, watched in theirs.items():
        steps = len(watched.calls) // 2  # each with the positive prompt first
        for recording, sixth in zip(ours[role].ranges.recordings, (1, 3, 5), strict=True):
            index = 2 * (steps * sixth // 6)
            for call, expected in zip(recording.calls, (watched.calls[index + 1], watched.calls[index]), strict=True):
                tensors = {name: value.float() for name, value in expected.items() if isinstance(value, Tensor)}
                assert call.keys() == tensors.keys()
                for name, value in tensors.items():
                    torch.testing.assert_close(call[name], value, rtol=1e-4, atol=1e-5, msg=f"{role}: {name}")


def test_the_recorded_inputs_of_the_graph_are_those_of_the_call(ours: dict[str, Found]) -> None:
    for each in ours.values():
        for made, expected in each.velocities:
            torch.testing.assert_close(made, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_with_other_pictures_the_ranges_are_others(kind: str, checkpoint: Path, ours: dict[str, Found]) -> None:
    for role, other in found(checkpoint, options(kind, first_clip=100)).items():
        before = ours[role].ranges.linears
        changes = [abs(spread.largest / before[name].largest - 1) for name, spread in other.ranges.linears.items()]
        assert max(changes) > 0.01, role


def test_the_report_has_its_table_and_the_examples_of_the_graph_are_what_was_recorded(
    kind: str, checkpoint: Path
) -> None:
    opened, found = quantized(kind, checkpoint)
    for name, report in found.reports.items():
        assert 0.001 < report["steps"][-1]["relative_l2"] < 0.1
        row = rf"self-attention products +{report['steps'][-1]['linears']} +{len(report['largest']['attentions'])} "
        assert re.search(row, quality_table(name, report))
        assert report["calibration"]["clips"][0].startswith("32x16x5 sha256:")
    for source in map(found.applied, denoisers(opened)):
        model = opened.load(source.component)
        outputs = [name for name, _, _ in source.outputs(model)]
        for sample in record(source.module(model, torch.float32), source.examples(model), outputs):
            assert np.isfinite(sample.outputs["next_state"]).all()
            recordings = [each.inputs for each in found.recordings[source.role]]
            for name in recordings[0]:
                assert np.isin(sample.inputs[name], [each[name] for each in recordings]).all()


@pytest.mark.parametrize("kind", ["Wan 2.1 I2V", "Wan 2.1 VACE"], indirect=True)
def test_graphs_in_fp8_agree_with_their_networks_and_take_loras(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    """Tracing takes long, so of kinds that are alike one is traced."""
    opened, found = quantized(kind, checkpoint)
    (source,) = denoisers(opened)
    source = with_lora_forms(found.applied(source))
    model = opened.load(source.component)
    traced, files = trace_source(source, model), WeightFolder(tmp_path / source.role)
    outputs = [name for name, _, _ in source.outputs(model)]
    for form in source.forms:
        parts = write_form(source, form, model, traced, files)
        with changed_by_lora(model, parts) as arrays:
            samples = record(source.module(model, torch.float32), source.examples(model), outputs)
        samples = [replace(sample, of_weights=arrays) for sample in samples]
        compare({tmp_path / graph.file: graph for graph in parts}, samples)  # which refuses what differs too much
    stored = onnx.load(tmp_path / parts[0].file, load_external_data=False).graph.initializer
    narrow = {each.name for each in stored if each.data_type == onnx.TensorProto.FLOAT8E4M3FN}
    layers = {re.sub(r"^transformer\.|\.weight.*$", "", name) for name in narrow}
    assert layers == set(found.reports["fp8"]["largest"]["linears"])
    assert {name.partition("blocks.1.")[0] for name in layers} == ({"", "vace_"} if "VACE" in kind else {""})


def quantized(kind: str, checkpoint: Path) -> tuple[OpenedCheckpoint, Quantization]:
    opened = open_checkpoint(checkpoint)
    return opened, quantize(opened, declared_manifest(opened), ["fp8"], options(kind), lambda stage: None)


def denoisers(opened: OpenedCheckpoint) -> list[GraphSource]:
    return [each for each in opened.family.sources(opened, ["fp8"]) if stage_of(each.role) == DENOISE]
