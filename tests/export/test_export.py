"""A whole export of a small random checkpoint, and what must not leave a bundle behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import mutoscope.cli
import numpy as np
import onnx
import pytest
import transformers
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.manifest import Draw, Expert, Frames
from mutoscope.conditions.text import Tokenizer
from mutoscope.errors import RequestError
from mutoscope_engines.symbols import sized
from mutoscope_export import export
from mutoscope_export.cli import main
from mutoscope_export.declaration import declared_manifest
from mutoscope_export.errors import ExportError
from mutoscope_export.export import export_checkpoint
from mutoscope_export.opening import open_checkpoint
from mutoscope_export.options import ExportOptions
from mutoscope_export.parity import Sample, compare_with_own_class

from tests.bundles import interfaces

WAN_ROLES = tuple(interfaces())
GRAPHS = {
    ("text_encoder", "int8", "text_encoder/model-int8.onnx"),
    *(
        ("denoiser", precision, f"denoiser/{name}.{part}.onnx")
        for precision, name in (("fp32", "model"), ("int8", "model-int8"), ("bf16-cpu", "model-bf16-cpu"))
        for part in (1, 2)  # of which the first is what the text alone decides
    ),
    *((role, "bf16-cpu", f"{role}/model-bf16-cpu.onnx") for role in WAN_ROLES if role.startswith("vae")),
    *((role, "fp32", f"{role}/model.onnx") for role in WAN_ROLES if role != "denoiser"),
    *((role, "bf16", f"{role}/model-bf16.onnx") for role in WAN_ROLES),
}


class StopHereError(Exception):
    pass


def test_a_bundle_is_whole_and_says_what_is_in_it(wan_bundle: Path, wan_checkpoint: Path) -> None:
    manifest = Bundle.open(wan_bundle).manifest
    assert {(graph.role, graph.precision, graph.file) for graph in manifest.graphs} == GRAPHS
    assert manifest.precisions("denoiser") == ["fp32", "int8", "bf16", "bf16-cpu"]
    geometry = manifest.geometry
    assert geometry.latent_channels == 4
    assert (geometry.vae_scale_factor_spatial, geometry.vae_scale_factor_temporal) == (8, 4)
    assert (geometry.patch_size, geometry.max_patches, geometry.vae_decoder_halo) == ((1, 2, 2), 1024, 3)
    assert manifest.frames == Frames(first=1, step=4, most=4093, latents_per_call=(1, 1), frames_per_call=(1, 4))
    (prompt,) = manifest.texts
    assert (prompt.name, prompt.max_sequence_length, prompt.pad_token_id) == ("prompt", 64, 0)
    assert (prompt.negative, prompt.cleaning) == ("negative_prompt", "ftfy-html-spaces")
    assert (manifest.experts, manifest.draws) == ((Expert(),), (Draw(input="latents", shape=(4, "F", "h", "w")),))
    assert (manifest.defaults.height, manifest.defaults.num_frames, manifest.defaults.scheduler) == (480, 81, "unipc")
    assert manifest.provenance.checkpoint == wan_checkpoint.name
    assert str(wan_checkpoint.parent) not in (wan_bundle / "manifest.json").read_text()
    assert manifest.preview is not None and len(manifest.preview.weights) == 4


def test_graphs_are_what_the_manifest_declares(wan_bundle: Path) -> None:
    for graph in Bundle.open(wan_bundle).manifest.graphs:
        model = onnx.load(wan_bundle / graph.file, load_external_data=False)
        assert (model.ir_version, model.opset_import[0].version) == (10, 23)
        for declared, values in ((graph.inputs, model.graph.input), (graph.outputs, model.graph.output)):
            assert [tensor.name for tensor in declared] == [value.name for value in values]


def test_the_manifest_says_where_the_weights_of_each_graph_lie_and_how_large_they_are(wan_bundle: Path) -> None:
    for graph in Bundle.open(wan_bundle).manifest.graphs:
        model = onnx.load(wan_bundle / graph.file, load_external_data=False)
        places = {
            tuple((entry.key, entry.value) for entry in tensor.external_data)
            for tensor in model.graph.initializer
            if tensor.external_data
        }
        locations = {f"{graph.role}/{dict(place)['location']}" for place in places}
        assert locations == set(graph.weights)
        assert graph.weight_bytes == sum(int(dict(place)["length"]) for place in places)


def test_what_several_precisions_have_in_common_is_stored_once(wan_bundle: Path) -> None:
    manifest = Bundle.open(wan_bundle).manifest
    denoisers = [graph for graph in manifest.graphs if graph.role == "denoiser"]
    wholes = [graph for graph in denoisers if graph.part != 1]
    assert len(wholes) == 4 and all("denoiser/model.2.onnx.data" in graph.weights for graph in wholes)
    stored = {name: manifest.files[name].size for graph in denoisers for name in graph.weights}
    assert sum(stored.values()) < sum(graph.weight_bytes for graph in denoisers)


def test_every_graph_was_compared_at_several_shapes_and_the_report_is_in_the_bundle(wan_bundle: Path) -> None:
    bundle = Bundle.open(wan_bundle)
    report = json.loads(bundle.path("export_report.json").read_text())
    found = {(each["role"], each["precision"], file) for each in report["graphs"] for file in each["files"]}
    assert {each for each in found if "-lora" not in each[2]} == GRAPHS  # the others: tests/test_lora.py
    for graph in report["graphs"]:
        for comparison in graph["comparisons"]:
            shapes = [json.dumps(sample["input_shapes"]) for sample in comparison["samples"]]
            assert len(set(shapes)) >= 3
        worst = [worst_difference(comparison) for comparison in graph["comparisons"]]
        if graph["precision"].startswith("bf16"):  # first with its weights alone rounded, then everything
            assert 1e-4 < worst[0] < worst[1] < 0.1
        else:
            assert worst[0] < (0.05 if graph["precision"] == "int8" else 1e-5)


def test_what_a_host_feeds_and_reads_has_the_same_type_in_every_precision(wan_bundle: Path) -> None:
    manifest = Bundle.open(wan_bundle).manifest
    for role in WAN_ROLES:
        (whole,) = manifest.graphs_of(role, "bf16")
        ends = [tensor for graph in manifest.graphs_of(role, "fp32") for tensor in (*graph.inputs, *graph.outputs)]
        plain = {tensor.name: tensor for tensor in ends}
        for half in (*whole.inputs, *whole.outputs):
            assert half.shape == plain[half.name].shape
            assert half.dtype == ("bfloat16" if "cache" in half.name else plain[half.name].dtype)


def test_the_text_part_of_a_denoiser_takes_the_text_alone_and_the_other_part_all_else(wan_bundle: Path) -> None:
    manifest = Bundle.open(wan_bundle).manifest
    (whole,) = manifest.graphs_of("denoiser", "bf16")
    for precision in ("fp32", "int8", "bf16-cpu"):
        text, rest = manifest.graphs_of("denoiser", precision)
        assert [tensor.name for tensor in text.inputs] == ["prompt_embeds"]
        passed = {tensor.name: tensor for tensor in text.outputs}
        assert len(passed) == 2 * 2  # keys and values of two blocks
        assert {tensor.shape[:2] for tensor in text.outputs} == {("B", "L")}
        taken = {tensor.name: tensor for tensor in rest.inputs}
        assert {name: tensor for name, tensor in taken.items() if name in passed} == passed
        assert taken.keys() - passed == {tensor.name for tensor in whole.inputs} - {"prompt_embeds"}
        assert rest.outputs == whole.outputs


def test_inspect_counts_what_passes_between_the_parts(wan_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mutoscope.cli.main(["inspect", str(wan_bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("  denoiser")] == [
        *(f"  denoiser.{part} {precision}" for precision in ("fp32", "int8") for part in (1, 2)),
        "  denoiser bf16",
        *(f"  denoiser.{part} bf16-cpu" for part in (1, 2)),
    ]
    assert sum(line.endswith(" 4 from part to part") for line in lines) == 6


def test_networks_for_gpus_are_written_in_parts_of_a_given_size_and_compared_so(
    wan_bundle: Path, wan_checkpoint: Path, tmp_path: Path
) -> None:
    (whole,) = Bundle.open(wan_bundle).manifest.graphs_of("denoiser", "bf16")
    options = ExportOptions(precision=("fp32", "bf16"), part_size=1)
    manifest = export_checkpoint(wan_checkpoint, tmp_path / "parts", options).manifest
    first, second = parts = manifest.graphs_of("denoiser", "bf16")
    assert all(0 < part.weight_bytes < whole.weight_bytes for part in parts)  # a block each, whatever it weighs
    assert {tensor.name for part in parts for tensor in part.inputs} >= {tensor.name for tensor in whole.inputs}
    assert second.outputs == whole.outputs and not set(first.outputs) - set(second.inputs)
    sizes = {"B": 2, "L": 7, "F": 3, "h": 8, "w": 10}
    of_tokens = [shape for tensor in first.outputs if (shape := sized(tensor.shape, sizes))[:2] == (2, 3 * 4 * 5)]
    assert len(of_tokens) == 3  # hidden states, which are one row inside, cosines and sines
    assert len(manifest.graphs_of("text_encoder", "bf16")) == 2
    assert len(manifest.graphs_of("text_encoder", "fp32")) == 1  # CPUs need no engines


def test_what_is_written_for_gpus_is_not_in_bf16_cpu(wan_bundle: Path) -> None:
    """Its graphs do what those in fp32 do, and convert between types."""
    for role in WAN_ROLES:
        if role == "text_encoder":
            continue
        plain, half = (
            Counter(
                node.op_type
                for graph in Bundle.open(wan_bundle).manifest.graphs_of(role, precision)
                for node in onnx.load(wan_bundle / graph.file, load_external_data=False).graph.node
            )
            for precision in ("fp32", "bf16-cpu")
        )
        assert not plain - half and set(half - plain) == {"Cast"}


def test_products_are_bfloat16_and_norms_float32_in_bf16(wan_bundle: Path) -> None:
    types: dict[str, set[int]] = {}
    for role in ("text_encoder", "denoiser", "vae_features_next", "vae_decoder_next"):
        graph = onnx.load(wan_bundle / role / "model-bf16.onnx", load_external_data=False).graph
        stored = {weight.name: weight.data_type for weight in graph.initializer}
        for node in graph.node:
            if len(node.input) > 1 and node.input[1] in stored:
                types.setdefault(node.op_type, set()).add(stored[node.input[1]])
    half, full = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    assert types["Conv"] == {half}
    assert half in types["MatMul"] and types["Gemm"] == {full}  # of the time embedding
    assert types["RMSNormalization"] == types["LayerNormalization"] == {full}


def worst_difference(comparison: dict[str, Any]) -> float:
    return max(
        output["relative_l2"]
        for sample in comparison["samples"]
        for name, output in sample["outputs"].items()
        if name != "frames"
    )


def test_every_component_was_compared_with_the_checkpoints_own_class(wan_bundle: Path) -> None:
    report = json.loads(Bundle.open(wan_bundle).path("export_report.json").read_text())
    found = {part["component"]: part for part in report["components"]}
    assert found.keys() == {"text_encoder", "transformer", "vae"}
    assert all(part["against"] == "checkpoint's own classes" for part in found.values())
    assert max(found[name]["relative_l2"] for name in ("text_encoder", "transformer")) < 1e-5
    assert found["vae"]["max_abs"] <= 1


@pytest.mark.parametrize(
    ("component", "weight"), [("text_encoder", "wi_0"), ("transformer", "to_q"), ("vae", "conv_in")]
)
def test_a_module_that_misreads_a_weight_is_told_from_the_checkpoints_own_class(
    wan_checkpoint: Path, component: str, weight: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = export.open_checkpoint(wan_checkpoint)
    model = opened.load(component)
    (own,) = (
        source.own for source in opened.family.sources(opened, ["fp32"]) if source.component == component and source.own
    )
    ours, _ = own(model)
    name = next(name for name, _ in model.named_parameters() if f"{weight}." in name and "encoder.conv" not in name)
    model.get_parameter(name).mul_(1.05)
    _, theirs = own(model)
    with pytest.raises(ExportError, match=f"the exported {component} differs from"):
        compare_with_own_class(component, model, ours, theirs)


def test_a_full_disk_is_told_and_nothing_is_left(
    wan_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export, "write_graph", full)
    with pytest.raises(
        ExportError, match=r"bundle cannot be written: there is no space left; free some.* Nothing was published"
    ):
        export_checkpoint(wan_checkpoint, tmp_path / "bundle")
    assert_nothing_was_left(tmp_path)


@pytest.mark.parametrize("text", ["", "a red circle", "Blue   squares, (moving)!", "漢字 🙂 café", "</s> <pad> <unk>"])
def test_the_written_tokenizer_gives_the_ids_of_the_checkpoints(
    wan_bundle: Path, wan_checkpoint: Path, text: str
) -> None:
    reference = transformers.T5Tokenizer.from_pretrained(wan_checkpoint / "tokenizer")
    expected = reference([text], padding="max_length", max_length=64, return_tensors="np")
    bundle = Bundle.open(wan_bundle)
    tokens = Tokenizer(bundle, bundle.manifest.texts[0]).encode({"prompt": text}, 64)
    np.testing.assert_array_equal(tokens.input_ids, expected.input_ids)
    np.testing.assert_array_equal(tokens.attention_mask, expected.attention_mask)


def assert_nothing_was_left(folder: Path) -> None:
    assert list(folder.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(wan_checkpoint: Path, tmp_path: Path) -> None:
    def stop(stage: str) -> None:
        if stage == "load text_encoder":
            assert (tmp_path / ".bundle.partial" / "tokenizer.json").is_file()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(wan_checkpoint, tmp_path / "bundle", on_progress=stop)
    assert_nothing_was_left(tmp_path)


def test_a_graph_that_differs_from_its_network_prevents_publishing(
    wan_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = export.record

    def one_percent_off(*arguments: Any) -> list[Sample]:
        return [
            Sample(sample.inputs, {name: 1.01 * value for name, value in sample.outputs.items()})
            for sample in record(*arguments)
        ]

    monkeypatch.setattr(export, "record", one_percent_off)
    with pytest.raises(ExportError, match=r"encoder/model.onnx differs from its network: .* Nothing was published"):
        export_checkpoint(wan_checkpoint, tmp_path / "bundle")
    assert_nothing_was_left(tmp_path)


@pytest.mark.parametrize("precisions", [("fp32", "fp7"), (), "fp32"])
def test_an_unknown_precision_is_refused_with_the_list(wan_checkpoint: Path, tmp_path: Path, precisions: Any) -> None:
    known = "fp32, int8, bf16, bf16-cpu, fp16, fp8, int8-static, nvfp4"
    with pytest.raises(RequestError, match=f"precision 'fp7'.*: {known}|must be a tuple of one or more of: {known}"):
        export_checkpoint(wan_checkpoint, tmp_path / "bundle", ExportOptions(precision=precisions))
    assert_nothing_was_left(tmp_path)


def described(checkpoint: Path, folder: Path, overrides: Any) -> Any:
    """The manifest, without graphs, of a copy of a checkpoint with this `mutoscope.json`."""
    copy = folder / "copy"
    shutil.copytree(checkpoint, copy)
    (copy / "mutoscope.json").write_text(json.dumps(overrides))
    return declared_manifest(open_checkpoint(copy))


def test_a_checkpoint_may_bring_defaults_of_its_own(wan_checkpoint: Path, tmp_path: Path) -> None:
    demonstration = {"pattern": "a (red|blue) .*", "description": "red and blue things"}
    overrides = {"defaults": {"height": 96, "fps": 8}, "demonstration": demonstration, "name": "N", "attribution": "A"}
    manifest = described(wan_checkpoint, tmp_path, overrides)
    assert (manifest.defaults.height, manifest.defaults.fps, manifest.defaults.width) == (96, 8, 832)
    assert manifest.demonstration.description == "red and blue things" and "mutoscope.json" in manifest.provenance.files
    assert (manifest.provenance.checkpoint, manifest.provenance.attribution) == ("N", "A")


@pytest.mark.parametrize("overrides", [{"default": {}}, {"defaults": {"hight": 96}}, {"defaults": {"height": "96"}}])
def test_a_misspelt_override_is_refused(wan_checkpoint: Path, tmp_path: Path, overrides: Any) -> None:
    with pytest.raises(ExportError, match=r"mutoscope\.json"):
        described(wan_checkpoint, tmp_path, overrides)


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"height": 100}, r"default height is 100, and the model takes 16 to 16384 in steps of 16\. Set .*mutoscope"),
        ({"width": 16400}, "default width is 16400"),
        ({"num_frames": 80}, "default num_frames is 80, and the model takes 1 to 4093 in steps of 4"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"scheduler": "ddim"}, "no schedule can be made from the defaults: scheduler is 'ddim'"),
    ],
)
def test_defaults_that_the_networks_cannot_serve_are_refused(
    wan_checkpoint: Path, tmp_path: Path, defaults: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        described(wan_checkpoint, tmp_path, {"defaults": defaults})


def test_the_command_line_tells_errors_by_exit_code_and_in_words(
    wan_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere, bundle = str(tmp_path / "nowhere"), str(tmp_path / "bundle")
    for arguments, code, message in (
        ([], 2, "required: CHECKPOINT, BUNDLE"),
        ([nowhere, bundle], 3, "nowhere"),
        (
            [str(wan_checkpoint), bundle, "--precision", "fp7"],
            2,
            "precision 'fp7'; did you mean fp8? There are: fp32, int8, bf16-cpu, bf16, fp16, int8-static, fp8, nvfp4",
        ),
        ([nowhere, bundle, "--over"], 2, "no flag '--over'; did you mean --overwrite?"),
    ):
        assert mutoscope.cli.main(["export", *arguments]) == code
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("mutoscope: error: ") and message in printed.err
    assert_nothing_was_left(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_kill_and_a_closed_terminal_end_the_command_with_130_and_leave_nothing(
    wan_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    def interrupted(_: Any, file: Path) -> None:
        file.write_text("half a tokenizer")
        os.kill(os.getpid(), number)

    monkeypatch.setattr(export, "write_tokenizer", interrupted)
    assert mutoscope.cli.main(["export", str(wan_checkpoint), str(tmp_path / "bundle")]) == 130
    assert capsys.readouterr().err == "mutoscope: interrupted\n"
    assert_nothing_was_left(tmp_path)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_command_line_reports_stages_to_a_terminal_and_prints_one_object(
    wan_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    def exported(checkpoint: str, destination: Path, options: ExportOptions, *, on_progress: Any) -> Bundle:
        assert (checkpoint, options) == ("some/model", ExportOptions(precision=("int8", "fp32"), overwrite=True))
        if on_progress:
            on_progress("write denoiser")
        return Bundle.open(destination, verify=False)

    monkeypatch.setattr(export, "export_checkpoint", exported)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    assert main(["some/model", str(wan_bundle), "--precision", "int8", "fp32", "--overwrite", "--json"]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert {(graph["role"], graph["precision"], graph["file"]) for graph in facts["graphs"]} == GRAPHS
    assert all(graph["bytes"] > 1000 for graph in facts["graphs"])
    assert printed.err.endswith(" s  write denoiser\n") if terminal else printed.err == ""
