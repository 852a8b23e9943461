"""A whole export from a single file with a LoRA: the graphs have these weights, and the manifest says where from."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import torch
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.manifest import MergedLora
from mutoscope.commands import inspect
from mutoscope_export.cli import main
from mutoscope_export.families.wan.original_names import original_name
from onnx import numpy_helper
from pytest import CaptureFixture
from safetensors.torch import load_file, save_file


def test_the_graph_has_the_weights_of_the_file_with_the_lora_and_the_manifest_names_both(
    least_checkpoint: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    """The file lacks a bias that the LoRA adds, which is exact in float32."""
    weights = load_file(least_checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    bias = weights["proj_out.bias"]
    weights["proj_out.bias"] = torch.zeros_like(bias)
    file, lora = tmp_path / "mine.safetensors", tmp_path / "few:steps.safetensors"
    save_file({f"model.diffusion_model.{original_name(name)}": value for name, value in weights.items()}, file)
    save_file({"diffusion_model.head.head.diff_b": 2 * bias}, lora)
    destination = tmp_path / "bundle"
    assert main([str(least_checkpoint), str(destination), "--transformer", str(file), "--lora", f"{lora}:0.5"]) == 0
    manifest = Bundle.open(destination, verify=False).manifest
    graphs = [onnx.load(destination / graph.file).graph for graph in manifest.graphs if graph.role == "denoiser"]
    values = [np.sort(numpy_helper.to_array(each).ravel()) for graph in graphs for each in graph.initializer]
    assert any(np.array_equal(each, np.sort(bias.numpy())) for each in values)
    made = manifest.provenance
    assert made.files["transformer/mine.safetensors"] == sha256(file.read_bytes()).hexdigest()
    merged = MergedLora(
        component="transformer", file=lora.name, sha256=sha256(lora.read_bytes()).hexdigest(), strength=0.5
    )
    assert made.loras == (merged,)
    assert not (destination / "staged").exists()
    capsys.readouterr()
    assert inspect.main([str(destination)]) == 0
    assert f"few:steps.safetensors, strength 0.5, sha256 {merged.sha256}" in capsys.readouterr().out
