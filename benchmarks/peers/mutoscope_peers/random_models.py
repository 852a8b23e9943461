"""Models with random weights, for cases of `mutoscope bench` and for other benchmarks, and random feeds for any graph.

Knows how to export one, and shapes. Knows nothing of time. Neither speed nor memory depends on the weights' values.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from mutoscope.bundle.bundle import Bundle, write_manifest
from mutoscope.bundle.manifest import Graph, GraphTensor
from mutoscope_bench.cases import MODELS, RandomModel
from mutoscope_engines.symbols import sized
from numpy.typing import NDArray

Feeds = dict[str, NDArray[Any]]

WIDTH_13B = {
    "latent_channels": 16, "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "text_dim": 4096,
    "freq_dim": 256, "num_layers": 2,
}  # fmt: skip
TINY: dict[str, int] = {"latent_channels": 4}
SIZES_13B = {"B": 2, "L": 512, "F": 5, "h": 32, "w": 32, "K": 1}  # 1280 tokens
SIZES_TINY = {"B": 2, "L": 8, "F": 2, "h": 4, "w": 4, "K": 1}
PRECISIONS = ("fp32", "int8")
# With these, `next_state` is nothing but the velocity, summed with a guidance scale of 5.
ONLY_VELOCITY = {"timestep": [700.0], "guidance_weights": [-4.0, 5.0], "solver_a": [[0.0]], "solver_b": [1.0]}


def make_denoiser(folder: Path, config: Mapping[str, int], sizes: Mapping[str, int]) -> None:
    """Writes `transformer/` in the Diffusers layout, `fp32/` and `int8/` with its graph, and `feeds.npz`.

    In a process of its own, so that no exporter's memory counts as that of what is measured.
    """
    task = json.dumps([str(folder), dict(config), dict(sizes)])
    subprocess.run([sys.executable, "-m", __spec__.name, task], check=True, stdout=sys.stderr)


def _make_denoiser(folder: Path, config: Mapping[str, int], sizes: Mapping[str, int]) -> None:
    from diffusers import WanTransformer3DModel
    from mutoscope_export.families.wan.random_checkpoint import random_checkpoint

    random_checkpoint(folder, **dict[str, Any](config))
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer").eval()
    source = text_to_video_source("denoiser", PRECISIONS)
    written = write_graphs(source, transformer, {precision: folder / precision for precision in PRECISIONS})
    feeds = random_feeds(written["fp32"][0].inputs, sizes)
    feeds |= {name: np.asarray(value, np.float32) for name, value in ONLY_VELOCITY.items()}
    np.savez(folder / "feeds.npz", **dict[str, Any](feeds))


def write_graphs(
    source: Any,
    network: Any,
    folders: Mapping[str, Path],
    calibrated: Callable[[Sequence[Any]], Sequence[Any]] = tuple,
    cut: Callable[[Any], list[set[Any]]] | None = None,
    *,
    lora_inputs: bool = False,
) -> dict[str, list[Graph]]:
    """Writes a network's graph in each precision into a folder of its own, whole or in parts.

    `source` is how its family makes the graph, and `calibrated` puts the passes that a calibration would give around
    those of its form; `lora_inputs` chooses the form that LoRAs change.

    Returns: by precision what a bundle says of the graph, or of its parts.
    """
    from mutoscope_export.export import trace_source, write_form
    from mutoscope_export.families.wan.precision_policy import CALIBRATED
    from mutoscope_export.graphs.weight_files import WeightFolder

    traced = trace_source(source, network)
    made = {}
    for form in (form for form in source.forms if form.precision in folders):
        passes = tuple(calibrated(form.passes)) if form.precision in CALIBRATED else form.passes
        destination = WeightFolder(folders[form.precision])
        form = replace(form, passes=passes, cut=cut, lora_inputs=lora_inputs)
        made[form.precision] = write_form(source, form, network, traced, destination)
    return made


def text_to_video_source(role: str, precisions: Sequence[str]) -> Any:
    """How the family makes a graph of a text-to-video checkpoint."""
    from mutoscope_export.families.wan.graph_sources import text_to_video

    (source,) = (source for source in text_to_video(precisions) if source.role == role)
    return source


def random_feeds(inputs: Sequence[GraphTensor], sizes: Mapping[str, int]) -> Feeds:
    """Normally distributed values for a graph's inputs, the same every time. `sizes` gives the symbols their values."""
    random = np.random.default_rng(0)
    return {tensor.name: random.standard_normal(sized(tensor.shape, sizes)).astype(tensor.dtype) for tensor in inputs}


def make_model(name: str, folder: Path) -> None:
    """Writes `checkpoint/` and `bundle/` of one of `MODELS` into a folder; what is there already is kept."""
    if (folder / "bundle").is_dir():
        return
    model = MODELS[name]
    checkpoint = _checkpoint(model, folder / "checkpoint")
    partial = folder / ".bundle.partial"
    shutil.rmtree(partial, ignore_errors=True)
    if model.compared:
        _export(checkpoint, partial, model)
    else:
        small = _checkpoint(_small(model), folder / ".small")
        _export(small, partial, model)
        replace_denoisers(partial, checkpoint)
        shutil.rmtree(small)
    os.replace(partial, folder / "bundle")


def _checkpoint(model: RandomModel, folder: Path) -> Path:
    import torch
    from mutoscope_export.families.wan.random_checkpoint import add_expert, random_checkpoint

    shutil.rmtree(folder, ignore_errors=True)
    random_checkpoint(
        folder, latent_channels=model.latent_channels, text_width=model.text_width, vae_config=model.vae,
        dtype=getattr(torch, model.dtype), scheduler=model.scheduler, **dict[str, Any](model.transformer),
    )  # fmt: skip
    return folder if model.boundary_ratio is None else add_expert(folder, model.boundary_ratio)


def _small(model: RandomModel) -> RandomModel:
    """Of the same inputs and outputs, with two blocks of nothing."""
    return RandomModel(latent_channels=model.latent_channels, text_width=model.text_width, precisions=model.precisions)


def _export(checkpoint: Path, bundle: Path, model: RandomModel) -> None:
    from mutoscope_export.export import export_checkpoint
    from mutoscope_export.options import ExportOptions

    export_checkpoint(checkpoint, bundle, ExportOptions(precision=model.precisions))


def replace_denoisers(bundle: Path, checkpoint: Path) -> None:
    """The graphs of the checkpoint's transformer, not compared with it, in place of those that the bundle has."""
    from mutoscope_export.export import trace_source, write_form
    from mutoscope_export.graphs.weight_files import WeightFolder
    from mutoscope_export.opening import open_checkpoint

    opened = Bundle.open(bundle, verify=False)
    folder = bundle / "denoiser"
    shutil.rmtree(folder)
    destination, network = WeightFolder(folder), open_checkpoint(checkpoint).load("transformer")
    source = text_to_video_source("denoiser", opened.manifest.precisions())
    traced = trace_source(source, network)
    graphs = [graph for graph in opened.manifest.graphs if graph.role != "denoiser"]
    for form in source.forms:
        graphs += write_form(source, form, network, traced, destination)
    write_manifest(bundle, msgspec.structs.replace(opened.manifest, graphs=tuple(graphs), lora_forms=()))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        make_model(sys.argv[1], Path(sys.argv[2]))
    else:
        given_folder, *given = json.loads(sys.argv[1])
        _make_denoiser(Path(given_folder), *given)
