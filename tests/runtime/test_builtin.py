"""The bundle that the package carries: what it holds, and that it stays small."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mutoscope import builtin
from mutoscope.builtin import bundle_path
from mutoscope.bundle.bundle import Bundle
from mutoscope.errors import BundleError
from mutoscope_engines.system.file_hash import file_sha256

FREEZE = (
    "PyInstaller .* hooks in mutoscope/pyinstaller_hooks; .* another freezer .* data files of the package mutoscope"
)
CHECKPOINT = Path(__file__).parents[2] / "export/mutoscope_export/demo/checkpoint"


def test_its_graphs_for_gpus_read_the_weights_of_those_for_cpus() -> None:
    manifest = Bundle.open(bundle_path(), verify=False).manifest
    assert manifest.precisions("denoiser") == ["fp32", "int8", "bf16"]
    for role in ("text_encoder", "denoiser", "vae_features_first", "vae_decoder_first"):
        for_gpus, for_cpus = (
            {file for graph in manifest.graphs_of(role, precision) for file in graph.weights}
            for precision in ("bf16", "fp32")
        )
        parts = (".1", ".2") if role == "denoiser" else ("",)
        assert for_gpus == for_cpus == {f"{role}/model{part}.onnx.data" for part in parts}


def test_it_says_what_it_was_made_from_which_is_the_checkpoint_of_the_repository() -> None:
    provenance = Bundle.open(bundle_path(), verify=False).manifest.provenance
    assert provenance.checkpoint == "Mutoscope's demonstration model"
    assert provenance.files == {name: file_sha256(CHECKPOINT / name) for name in provenance.files}


def test_it_takes_less_than_60_mb_with_its_checkpoint() -> None:
    files = [path for root in (bundle_path(), CHECKPOINT) for path in root.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60_000_000


@pytest.mark.parametrize(("frozen", "remedy"), [(True, FREEZE), (False, "install Mutoscope again")])
def test_a_program_without_the_bundle_says_what_helps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, frozen: bool, remedy: str
) -> None:
    monkeypatch.setattr(builtin, "__file__", str(tmp_path / "__init__.py"))
    if frozen:
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(BundleError, match=f"no built-in bundle in this program; name one, or .*{remedy}"):
        builtin.bundle_path()
