"""A checkpoint of three blocks, exported to eight bits by the command, and its graphs against measurements in torch."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mutoscope
import mutoscope.cli
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from mutoscope import builtin
from mutoscope.bundle.bundle import Bundle
from mutoscope_engines.backends import load_backend
from mutoscope_engines.chain import Chain
from mutoscope_engines.session import SessionOptions
from mutoscope_export.errors import ExportError
from mutoscope_export.families.family import Call, Form, GraphSource, Recording, Reference
from mutoscope_export.families.policy import QuantizationPolicy, QuantizationStep
from mutoscope_export.families.wan.precision_policy import CALIBRATED
from mutoscope_export.families.wan.random_checkpoint import random_checkpoint
from mutoscope_export.graphs.number_formats import E4M3
from mutoscope_export.opening import open_checkpoint
from mutoscope_export.options import ExportOptions
from mutoscope_export.passes.in_float32 import InFloat32
from mutoscope_export.passes.nvfp4_in_float32 import nvfp4_in_float32
from mutoscope_export.quantization.calibration import Ranges, plan_calibration
from mutoscope_export.quantization.quantize import calibrated, passes_of, quality_table, quantize
from torch import Tensor, nn

from benchmarks.quantisation_quality import velocity

PROMPTS = ["a red circle", "the blue square moving"]
OPTIONS = ExportOptions(calibration_prompts=PROMPTS, calibration_size=(32, 48, 9), calibration_steps=3)


@dataclass(frozen=True)
class Exported:
    checkpoint: Path
    bundle: Bundle
    report: dict
    compared: list
    printed: str


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("quantization")
    widths = {"attention_head_dim": 16, "ffn_dim": 64}  # which are whole blocks of NVFP4
    checkpoint = random_checkpoint(
        folder / "checkpoint", num_layers=3, vae_config={"num_res_blocks": 0}, dtype=torch.bfloat16, **widths
    )
    prompts = folder / "prompts.txt"
    prompts.write_text("\n\n".join(PROMPTS))
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mutoscope_export.cli.tell", printed.append)
        # So few layers are too large a part of this network for what a real one may lose.
        patch.setitem(CALIBRATED, "nvfp4", replace(CALIBRATED["nvfp4"], four_bits_error=3.0))
        arguments = ["--calibration-prompts", str(prompts), "--calibration-size", "32x48x9", "--calibration-steps", "3"]
        given = ["export", str(checkpoint), str(folder / "bundle"), "--precision", "fp32", *CALIBRATED, *arguments]
        assert mutoscope.cli.main(given) == 0
    bundle = Bundle.open(folder / "bundle")
    report = json.loads(bundle.path("export_report.json").read_text())
    return Exported(checkpoint, bundle, report["calibrated"], report["graphs"], "\n".join(printed))


@pytest.fixture(scope="module")
def again(exported: Exported) -> tuple[Reference, Ranges]:
    """The same calibration once more."""
    manifest, opened = exported.bundle.manifest, open_checkpoint(exported.checkpoint)
    [(reference, ranges)] = calibrated(opened, plan_calibration(OPTIONS, manifest), lambda stage: None)
    assert reference.role == "denoiser"
    return reference, ranges


@pytest.mark.parametrize(
    ("precision", "stored", "attentions"),
    [("fp8", onnx.TensorProto.FLOAT8E4M3FN, 1), ("int8-static", onnx.TensorProto.INT8, 0)],
)
def test_the_bundle_has_the_graph_with_as_much_quantized_as_the_report_says(
    exported: Exported, precision: str, stored: int, attentions: int
) -> None:
    graph = exported.bundle.manifest.graphs_of("denoiser", precision)[0]
    nodes = onnx.load(exported.bundle.path(graph.file), load_external_data=False).graph
    quantized = [tensor.name for tensor in nodes.initializer if tensor.data_type == stored]
    report = exported.report[precision]
    step = next(step for step in report["steps"] if step["step"] == report["policy"])
    assert len(quantized) == step["linears"] == 8
    assert all(".blocks.1." in name for name in quantized)
    left = sum(node.op_type == "Attention" for node in nodes.node)
    assert (left, step["attentions"]) == (6 - attentions, attentions)


def test_the_graph_in_nvfp4_has_as_many_layers_in_four_bits_as_were_chosen_and_the_others_in_eight(
    exported: Exported,
) -> None:
    report = exported.report["nvfp4"]
    (graph,) = exported.bundle.manifest.graphs_of("denoiser", "nvfp4")
    stored = onnx.load(exported.bundle.path(graph.file), load_external_data=False).graph.initializer
    kinds = collections.Counter(each.data_type for each in stored if each.name.startswith("transformer.blocks.1."))
    chosen = len(report["four_bits"])
    assert 0 < chosen == kinds[onnx.TensorProto.FLOAT4E2M1]
    assert kinds[onnx.TensorProto.FLOAT8E4M3FN] == 8  # weights, or the scales of blocks
    assert {"step", "four_bits"} <= report["steps"][0].keys() and report["steps"][0]["four_bits"] == 0
    arithmetic = next(each for each in exported.compared if each["files"] == [graph.file])["comparisons"]
    assert [each["arithmetic"] for each in arithmetic] == ["in float32", "with each value rounded"]


def test_the_report_has_ranges_calibration_and_the_cost_of_every_step(exported: Exported) -> None:
    fp8 = exported.report["fp8"]
    assert fp8["calibration"]["prompts"] == PROMPTS
    assert (fp8["calibration"]["height"], fp8["calibration"]["num_inference_steps"]) == (32, 3)
    assert len(fp8["largest"]["linears"]) == 8 and all(fp8["largest"]["linears"].values())
    assert len(fp8["largest"]["attentions"]["blocks.1.attn1"]) == 3
    errors = [step["relative_l2"] for step in fp8["steps"]]
    linears = errors[:-1]  # attention adds less here than errors that happen to cancel take away
    assert linears == sorted(linears) and errors[0] > 0.001 and errors[-1] < 0.1


def test_the_table_is_printed_at_the_end_before_the_bundle(exported: Exported) -> None:
    assert all(quality_table(*report) in exported.printed for report in exported.report.items())
    assert "self-attention products     8        1           " in exported.printed
    assert exported.printed.splitlines()[-1] == str(exported.bundle.root)
    worst = exported.report["fp8"]["worst_layers"]
    assert f"{next(iter(worst))} {next(iter(worst.values())):.1%}" in exported.printed


@pytest.mark.parametrize("precision", CALIBRATED)
def test_the_graph_costs_what_the_measurement_says_and_calibration_is_repeatable(
    exported: Exported, again: tuple[Reference, Ranges], tmp_path: Path, precision: str
) -> None:
    """The measurement does in torch what ONNX Runtime does with the graph, but for scales rounded to bfloat16."""
    manifest, (_, ranges) = exported.bundle.manifest, again
    found = {name: spread.largest for name, spread in ranges.linears.items()}
    assert found == exported.report[precision]["largest"]["linears"]
    steps = exported.report[precision]["steps"]
    (measured,) = (step for step in steps if step["step"] == exported.report[precision]["policy"])
    exact, quantized = (
        [exported.bundle.path(graph.file) for graph in manifest.graphs_of("denoiser", name)]
        for name in ("fp32", precision)
    )
    model = ir.load(*quantized)
    nvfp4_in_float32(model)
    InFloat32(rounded=False)(model)
    ir.save(model, tmp_path / "model.onnx", external_data="model.onnx.data")

    def velocities(*parts: Path) -> np.ndarray:
        backend = load_backend("onnxruntime")
        with Chain([backend.open(part, SessionOptions(threads=1)) for part in parts]) as session:
            return np.stack(
                [velocity(session, recording, branch) for recording in ranges.recordings for branch in range(2)]
            )

    expected, given = velocities(*exact), velocities(tmp_path / "model.onnx")
    cost = np.linalg.norm(given - expected) / np.linalg.norm(expected)
    assert cost == pytest.approx(measured["relative_l2"], rel=0.1)


def test_passes_name_the_layers_of_the_step(exported: Exported, again: tuple[Reference, Ranges]) -> None:
    reference, ranges = again
    policy = CALIBRATED["fp8"]
    (linears,) = passes_of(policy, policy.layers(reference.layer_names, "feed-forward"), ranges).before
    weight = "transformer.blocks.1.ffn.net.2.weight"
    assert linears.activation_scales.keys() == {weight, "transformer.blocks.1.ffn.net.0.proj.weight"}
    largest = exported.report["fp8"]["largest"]["linears"]["blocks.1.ffn.net.2"]
    assert linears.activation_scales[weight] * 448 == pytest.approx(1.1 * largest)


def test_a_network_too_shallow_is_refused(wan_checkpoint: Path, exported: Exported) -> None:
    with pytest.raises(ExportError, match="cannot be quantized to 8 bits: of 2 blocks, 1 at each end"):
        quantize(open_checkpoint(wan_checkpoint), exported.bundle.manifest, ["fp8"], OPTIONS, lambda stage: None)


class Blocks(nn.Module):
    """Three blocks of one linear layer, called as Diffusers calls a denoiser."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(4, 4)}) for _ in range(3))

    def forward(self, hidden_states: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        for block in self.blocks:
            hidden_states = block["a"](hidden_states)
        return (hidden_states,)


def opened_with(networks: dict[str, nn.Module]) -> Any:
    """A checkpoint whose reference calls its networks in turn, three times each, the second with larger values."""
    policy = QuantizationPolicy(E4M3, r"blocks\.(\d)\.(.+)", 0.1, (QuantizationStep("all", "a"),), "all", "{}", "{}")

    def steps(calls: Sequence[Call]) -> list[Recording]:
        return [Recording({"latents": each["hidden_states"]}, (each,)) for each in calls]

    def run(network: nn.Module, size: int) -> None:
        for _ in range(3):
            network(hidden_states=torch.randn(1, 4).clamp(-3, 3) * 10**size)

    def reference(*_: Any) -> Iterator[Reference]:
        for size, (role, network) in enumerate(networks.items(), start=1):
            yield Reference(role, network, [partial(run, network, size)], steps)

    return SimpleNamespace(
        name="two experts",
        description=SimpleNamespace(policies={"fp8": policy}, experts=networks),
        family=SimpleNamespace(reference=reference),
        overrides=SimpleNamespace(calibration_prompts=None),
    )


def test_of_two_experts_each_is_quantized_by_what_it_reads_itself() -> None:
    torch.manual_seed(0)
    networks: dict[str, nn.Module] = {role: Blocks().requires_grad_(False) for role in ("denoiser", "denoiser_low")}
    read: dict[str, list[float]] = {role: [] for role in networks}
    for role, network in networks.items():
        network.get_submodule("blocks.1.a").register_forward_pre_hook(
            lambda layer, given, role=role: read[role].append(float(given[0].abs().max()))
        )
    manifest = Bundle.open(builtin.bundle_path(), verify=False).manifest
    found = quantize(opened_with(networks), manifest, ["fp8"], ExportOptions(), lambda stage: None)
    assert list(found.reports) == ["fp8 of denoiser", "fp8 of denoiser_low"]
    for role, network in networks.items():
        largest = max(read[role][:3])  # those of the calibration itself; the measurement runs the network again
        assert found.reports[f"fp8 of {role}"]["largest"]["linears"] == {"blocks.1.a": pytest.approx(largest)}
        example = {"latents": torch.zeros(1, 4), "guidance_weights": torch.ones(1)}
        source = GraphSource(
            role=role,
            component=role,
            module=lambda model, dtype: model,
            inputs=lambda model: [("latents", "float32", (1, 4))],
            outputs=lambda model: [],
            examples=lambda model, example=example: [example],
            forms=(Form("fp32"), Form("fp8")),
        )
        applied = found.applied(source)
        plain, fp8 = applied.forms
        assert plain.passes == ()
        (linears,) = fp8.passes
        assert linears.activation_scales["blocks.1.a"] * 448 == pytest.approx(1.1 * largest)
        recorded = applied.examples(network)[0]["latents"]
        assert float(recorded.abs().max()) > (20 if role == "denoiser_low" else 0)
        torch.testing.assert_close(recorded, found.recordings[role][0].inputs["latents"])
    other = replace(source, role="text_encoder")
    assert found.applied(other) is other
