"""A whole export of a small random checkpoint, and what must not leave a bundle behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import transformers
from mutoscope.bundle import Bundle
from mutoscope.errors import RequestError
from mutoscope.text import Tokenizer
from mutoscope_export import export
from mutoscope_export.cli import main
from mutoscope_export.errors import ExportError
from mutoscope_export.export import export_checkpoint
from mutoscope_export.parity import Sample

ROLES = {
    ("text_encoder", "fp32", "text_encoder/model.onnx"),
    ("denoiser", "fp32", "denoiser/model.onnx"),
    ("denoiser", "int8", "denoiser-int8/model.onnx"),
    ("vae_decoder_first", "fp32", "vae_decoder_first/model.onnx"),
    ("vae_decoder_next", "fp32", "vae_decoder_next/model.onnx"),
}


class StopHereError(Exception):
    pass


def test_a_bundle_is_whole_and_says_what_is_in_it(wan_bundle: Path, wan_checkpoint: Path) -> None:
    manifest = Bundle.open(wan_bundle).manifest
    assert {(graph.role, graph.precision, graph.file) for graph in manifest.graphs} == ROLES
    assert manifest.precisions("denoiser") == ["fp32", "int8"]
    geometry = manifest.geometry
    assert geometry.latent_channels == 4
    assert (geometry.vae_scale_factor_spatial, geometry.vae_scale_factor_temporal) == (8, 4)
    assert (geometry.patch_size, geometry.max_patches) == ((1, 2, 2), 1024)
    assert (manifest.text.max_sequence_length, manifest.text.width, manifest.text.pad_token_id) == (64, 16, 0)
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


def test_every_graph_was_compared_at_several_shapes_and_the_report_is_in_the_bundle(wan_bundle: Path) -> None:
    bundle = Bundle.open(wan_bundle)
    report = json.loads(bundle.path("export_report.json").read_text())
    assert {(graph["role"], graph["precision"], graph["file"]) for graph in report["graphs"]} == ROLES
    for graph in report["graphs"]:
        shapes = [json.dumps(sample["input_shapes"]) for sample in graph["samples"]]
        assert len(set(shapes)) >= 3
        worst = max(
            output["relative_l2"]
            for sample in graph["samples"]
            for name, output in sample["outputs"].items()
            if name != "frames"
        )
        assert worst < (0.05 if graph["precision"] == "int8" else 1e-5)


@pytest.mark.parametrize("text", ["", "a red circle", "Blue   squares, (moving)!", "漢字 🙂 café", "</s> <pad> <unk>"])
def test_the_written_tokenizer_gives_the_ids_of_the_checkpoints(
    wan_bundle: Path, wan_checkpoint: Path, text: str
) -> None:
    reference = transformers.T5Tokenizer.from_pretrained(wan_checkpoint / "tokenizer")
    expected = reference([text], padding="max_length", max_length=64, return_tensors="np")
    tokens = Tokenizer(Bundle.open(wan_bundle)).encode([text], 64)
    np.testing.assert_array_equal(tokens.input_ids, expected.input_ids)
    np.testing.assert_array_equal(tokens.attention_mask, expected.attention_mask)


def assert_nothing_was_left(folder: Path) -> None:
    assert list(folder.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(wan_checkpoint: Path, tmp_path: Path) -> None:
    def stop(stage: str, fraction: float | None) -> None:
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
    with pytest.raises(ExportError, match=r"text_encoder/model.onnx does not compute .* Nothing was published"):
        export_checkpoint(wan_checkpoint, tmp_path / "bundle")
    assert_nothing_was_left(tmp_path)


@pytest.mark.parametrize("precisions", [("fp32", "fp7"), (), "fp32"])
def test_an_unknown_precision_is_refused_with_the_list(wan_checkpoint: Path, tmp_path: Path, precisions: Any) -> None:
    with pytest.raises(RequestError, match="precisions must be some of: fp32, int8; got"):
        export_checkpoint(wan_checkpoint, tmp_path / "bundle", precisions=precisions)
    assert_nothing_was_left(tmp_path)


def test_a_destination_that_is_not_a_bundle_is_never_replaced(wan_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(RequestError, match="is not empty and no bundle"):
        export_checkpoint(wan_checkpoint, tmp_path / "notes", overwrite=True)
    with pytest.raises(RequestError, match="is a file"):
        export_checkpoint(wan_checkpoint, tmp_path / "notes" / "thesis.txt", overwrite=True)
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"


def test_a_bundle_is_only_replaced_on_demand_and_stays_where_that_fails(
    wan_checkpoint: Path, wan_bundle: Path, tmp_path: Path
) -> None:
    there = tmp_path / "bundle"
    shutil.copytree(wan_bundle, there)

    def stop(stage: str, fraction: float | None) -> None:
        if stage == "tokenizer":
            raise StopHereError

    with pytest.raises(RequestError, match="pass --overwrite"):
        export_checkpoint(wan_checkpoint, there, on_progress=stop)
    with pytest.raises(StopHereError):
        export_checkpoint(wan_checkpoint, there, overwrite=True, on_progress=stop)
    Bundle.open(there)


def test_a_finished_folder_takes_the_place_of_an_older_bundle(tmp_path: Path) -> None:
    for name in ("bundle", ".bundle.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(name)
    export._publish(tmp_path / ".bundle.partial", tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (tmp_path / "bundle" / "manifest.json").read_text() == ".bundle.partial"


def test_two_exports_to_one_place_do_not_mix(wan_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / ".bundle.partial").mkdir()
    with pytest.raises(RequestError, match=r"another export .* is running, or one was killed"):
        export_checkpoint(wan_checkpoint, tmp_path / "bundle")
    assert (tmp_path / ".bundle.partial").is_dir()


def described(checkpoint: Path, folder: Path, overrides: Any) -> Any:
    """The manifest, without graphs, of a copy of a checkpoint with this `mutoscope.json`."""
    copy = folder / "copy"
    shutil.copytree(checkpoint, copy)
    (copy / "mutoscope.json").write_text(json.dumps(overrides))
    (folder / "made").mkdir()
    return export._describe(export.open_checkpoint(copy), folder / "made", lambda stage, fraction: None)


def test_a_checkpoint_may_bring_defaults_of_its_own(wan_checkpoint: Path, tmp_path: Path) -> None:
    demonstration = {"pattern": "a (red|blue) .*", "description": "red and blue things"}
    overrides = {"defaults": {"height": 96, "fps": 8}, "demonstration": demonstration, "attribution": "The authors"}
    manifest = described(wan_checkpoint, tmp_path, overrides)
    assert (manifest.defaults.height, manifest.defaults.fps, manifest.defaults.width) == (96, 8, 832)
    assert manifest.demonstration.description == "red and blue things"
    assert manifest.provenance.attribution == "The authors"
    assert "mutoscope.json" in manifest.provenance.files


@pytest.mark.parametrize("overrides", [{"default": {}}, {"defaults": {"hight": 96}}, {"defaults": {"height": "96"}}])
def test_a_misspelt_override_is_refused(wan_checkpoint: Path, tmp_path: Path, overrides: Any) -> None:
    with pytest.raises(ExportError, match=r"mutoscope\.json"):
        described(wan_checkpoint, tmp_path, overrides)


def test_the_command_line_tells_errors_by_exit_code_and_in_words(
    wan_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "bundle")]) == 3
    assert main([str(wan_checkpoint), str(tmp_path / "bundle"), "--precision", "fp7"]) == 2
    assert "some of: fp32, int8" in capsys.readouterr().err
    assert_nothing_was_left(tmp_path)


def test_the_command_line_reports_stages_and_prints_one_object(
    wan_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exported(checkpoint: str, destination: Path, **options: Any) -> Bundle:
        assert (checkpoint, options["precisions"], options["overwrite"]) == ("some/model", ["int8", "fp32"], True)
        options["on_progress"]("export denoiser", None)
        return Bundle.open(destination, verify=False)

    monkeypatch.setattr(export, "export_checkpoint", exported)
    assert main(["some/model", str(wan_bundle), "--precision", "int8", "fp32", "--overwrite", "--json"]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert {(graph["role"], graph["precision"], graph["file"]) for graph in facts["graphs"]} == ROLES
    assert all(graph["bytes"] > 1000 for graph in facts["graphs"])
    assert " s  export denoiser\n" in printed.err
