"""A whole export from a single file with a LoRA: the same graphs as from a folder that has these weights."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import torch
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.manifest import MergedLora
from mutoscope.commands import inspect
from mutoscope_export.cli import main
from mutoscope_export.families.wan.original_names import original_name
from pytest import CaptureFixture
from safetensors.torch import load_file, save_file


def test_graphs_and_weights_are_those_of_the_checkpoint_that_was_taken_apart(
    wan_checkpoint: Path, wan_bundle: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    """The file lacks a bias that the LoRA adds, which is exact in float32."""
    weights = load_file(wan_checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    bias = weights["proj_out.bias"]
    weights["proj_out.bias"] = torch.zeros_like(bias)
    file, lora = tmp_path / "mine.safetensors", tmp_path / "few:steps.safetensors"
    save_file({f"model.diffusion_model.{original_name(name)}": value for name, value in weights.items()}, file)
    save_file({"diffusion_model.head.head.diff_b": 2 * bias}, lora)
    destination = tmp_path / "bundle"
    assert main([str(wan_checkpoint), str(destination), "--transformer", str(file), "--lora", f"{lora}:0.5"]) == 0
    made, expected = (Bundle.open(path, verify=False).manifest for path in (destination, wan_bundle))
    assert {name: record for name, record in made.files.items() if name != "export_report.json"} == {
        name: expected.files[name] for name in made.files if name != "export_report.json"
    }
    assert any(name.startswith("denoiser/") for name in made.files)
    assert made.provenance.files["transformer/mine.safetensors"] == sha256(file.read_bytes()).hexdigest()
    merged = MergedLora(
        component="transformer", file=lora.name, sha256=sha256(lora.read_bytes()).hexdigest(), strength=0.5
    )
    assert made.provenance.loras == (merged,)
    assert expected.provenance.loras == ()
    assert not (destination / "staged").exists()
    capsys.readouterr()
    assert inspect.main([str(destination)]) == 0
    assert f"1 in transformer  few:steps.safetensors, strength 0.5, sha256 {merged.sha256}" in " ".join(
        capsys.readouterr().out.split(" ")
    )
