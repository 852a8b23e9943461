"""Where models with random weights are put, and what is kept of them. Their export is that of any checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mutoscope_bench.cases import CASES, MODELS, RandomModel
from mutoscope_export.opening import open_checkpoint
from mutoscope_export.options import ExportOptions
from mutoscope_peers.random_models import make_model


def test_a_model_is_a_checkpoint_and_the_bundle_of_it_and_is_made_once(
    wan_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = []

    def export(checkpoint: Path, destination: Path, options: ExportOptions) -> None:
        exported.append((open_checkpoint(checkpoint).description.precisions, options))
        shutil.copytree(wan_bundle, destination)

    monkeypatch.setattr("mutoscope_export.export.export_checkpoint", export)
    (tmp_path / ".bundle.partial").mkdir()  # of an attempt that was stopped
    for _ in range(2):
        make_model("tiny", tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "bundle"}
        assert (tmp_path / "bundle/manifest.json").is_file()
    ((possible, options),) = exported
    assert options.precision == MODELS["tiny"].precisions and set(options.precision) <= set(possible)


def test_a_model_of_two_experts_has_two_and_the_shift_that_diffusers_runs(
    wan_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = []

    def export(checkpoint: Path, destination: Path, options: ExportOptions) -> None:
        described.append(open_checkpoint(checkpoint).description)
        shutil.copytree(wan_bundle, destination)

    monkeypatch.setattr("mutoscope_export.export.export_checkpoint", export)
    make_model("tiny-two-experts", tmp_path)
    (description,) = described
    assert [expert.role for expert in description.experts] == ["denoiser", "denoiser_low"]
    assert description.defaults.flow_shift is None  # otherwise the bundle has another than the checkpoint


def test_every_model_of_a_case_has_a_small_one_of_its_kind_for_a_quick_run() -> None:
    for model in (MODELS[case.model] for case in CASES.values() if case.model is not None):
        quick = MODELS[model.quick]
        assert quick.boundary_ratio == model.boundary_ratio and quick.transformer == RandomModel().transformer
