"""A bundle and a checkpoint with two experts, made of ones with one: the second is the first once more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
from mutoscope.bundle.bundle import Bundle, write_manifest
from mutoscope.bundle.manifest import Expert

BOUNDARY = 0.8


def bundle_of_two(bundle: Path, folder: Path) -> Path:
    """A copy of the bundle in the folder, which does not exist yet; its second expert works below `BOUNDARY`."""
    shutil.copytree(bundle, folder)
    shutil.copytree(folder / "denoiser", folder / "denoiser_low")
    manifest = Bundle.open(bundle, verify=False).manifest
    low = [
        msgspec.structs.replace(
            graph,
            role="denoiser_low",
            file=graph.file.replace("denoiser/", "denoiser_low/"),
            weights=tuple(file.replace("denoiser/", "denoiser_low/") for file in graph.weights),
        )
        for graph in manifest.graphs
        if graph.role == "denoiser"
    ]
    experts = (Expert(above=1000 * BOUNDARY), Expert(role="denoiser_low"))
    changes = {"experts": experts, "graphs": (*manifest.graphs, *low), "lora_forms": ()}
    write_manifest(folder, msgspec.structs.replace(manifest, **changes))
    return folder


def checkpoint_of_two(checkpoint: Path, folder: Path) -> Path:
    """The same of a checkpoint."""
    shutil.copytree(checkpoint, folder)
    shutil.copytree(folder / "transformer", folder / "transformer_2")
    index = folder / "model_index.json"
    two = {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": BOUNDARY}
    index.write_text(json.dumps(json.loads(index.read_text("utf-8")) | two), "utf-8")
    return folder
