"""What export declares of the graphs of random checkpoints, in every precision, against the contract of a bundle.

That files are what is declared of them, `parity.compare` refuses otherwise for every file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mutoscope.bundle.checks import decode_manifest
from mutoscope.bundle.contract import DECODE, DENOISE
from mutoscope.bundle.manifest import FileRecord, Frames, Manifest
from mutoscope.errors import BundleError
from mutoscope_engines.precisions import PRECISIONS
from mutoscope_export.declaration import declared_graph, declared_manifest
from mutoscope_export.families.wan.random_checkpoint import VAE_2_2, random_checkpoint
from mutoscope_export.opening import open_checkpoint

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "Wan 2.1": {},
    "Wan 2.2's VAE, wider text": {"vae_config": VAE_2_2, "latent_channels": 6, "text_width": 24, "num_layers": 1},
    "Wan 2.2 TI2V": {"expand_timesteps": True, "vae_config": VAE_2_2, "latent_channels": 6, "num_layers": 1},
    "patches over time": {"patch_size": (2, 2, 2), "rope_max_seq_len": 128},
    "few levels, flat patches": {
        "patch_size": (1, 1, 2),
        "vae_config": {
            "num_res_blocks": 0, "dim_mult": [1, 2], "temperal_downsample": [True], "scale_factor_spatial": 2,
            "scale_factor_temporal": 2,
        },
    },
}  # fmt: skip
FRAMES = {
    "Wan 2.1": Frames(first=1, step=4, most=4093, frames_per_call=(1, 4)),
    "Wan 2.2's VAE, wider text": Frames(first=1, step=4, most=4093, frames_per_call=(1, 4)),
    "Wan 2.2 TI2V": Frames(first=1, step=4, most=4093, frames_per_call=(1, 4)),
    "patches over time": Frames(first=5, step=8, most=5 + 127 * 8, frames_per_call=(1, 4)),
    "few levels, flat patches": Frames(first=1, step=2, most=1 + 1023 * 2, frames_per_call=(1, 2)),
}


def declared(folder: Path, num_frames: int = 1, **sizes: Any) -> Manifest:
    """The manifest of a random checkpoint with a whole graph for each form of each source, none of them traced."""
    checkpoint = random_checkpoint(folder / "checkpoint", **sizes)
    (checkpoint / "mutoscope.json").write_text(json.dumps({"defaults": {"num_frames": num_frames}}))
    opened = open_checkpoint(checkpoint)
    manifest = declared_manifest(opened)
    models = {component: opened.load(component) for component in opened.networks}
    graphs = [
        declared_graph(source, form, models[source.component])
        for source in opened.family.sources(opened, opened.description.precisions)
        for form in source.forms
    ]
    files = dict.fromkeys(["tokenizer.json", *(graph.file for graph in graphs)], FileRecord(sha256="", size=0))
    return msgspec.structs.replace(manifest, graphs=tuple(graphs), files=files)


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_what_export_declares_keeps_the_contract_in_every_precision(tmp_path: Path, case: str) -> None:
    manifest = declared(tmp_path, FRAMES[case].first, **CHECKPOINTS[case])
    assert decode_manifest(msgspec.json.encode(manifest)) == manifest
    assert sorted(manifest.precisions()) == sorted(PRECISIONS)
    assert manifest.frames == FRAMES[case]
    assert manifest.roles_of(DENOISE) == ("denoiser",) and len(manifest.roles_of(DECODE)) == 4


def test_a_declaration_that_differs_in_one_size_is_refused(tmp_path: Path) -> None:
    manifest = declared(tmp_path, num_layers=1)
    for change in (
        {"frames": Frames(first=1, step=4, most=4093, frames_per_call=(1, 2))},
        {"geometry": msgspec.structs.replace(manifest.geometry, vae_scale_factor_spatial=4)},
        {"conditionings": ()},
    ):
        with pytest.raises(BundleError, match="contradicts itself"):
            decode_manifest(msgspec.json.encode(msgspec.structs.replace(manifest, **change)))
