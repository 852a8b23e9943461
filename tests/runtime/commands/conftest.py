"""A small bundle, and a backend that makes grey videos of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from mutoscope.bundle.bundle import write_manifest
from mutoscope.bundle.manifest import (
    FORMAT_VERSION,
    Defaults,
    Demonstration,
    Draw,
    Expert,
    Frames,
    Geometry,
    Manifest,
    Provenance,
    TextConditioning,
)
from mutoscope_engines.testing import FakeBackend, only_backends

from tests.bundles import graphs, interfaces, onnx_file
from tests.runtime.commands.functions import CACHES, FUNCTIONS, HEIGHT, WIDTH


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    ends = interfaces(text_width=4, feature_caches=(), decoder_caches=((1, 4, "h", "w"),) * CACHES)
    for graph in graphs(ends):
        (root / graph.role).mkdir(parents=True)
        (root / graph.file).write_bytes(onnx_file(graph))
    words = tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "circle": 2}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(root / "tokenizer.json"))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        family="wan",
        provenance=Provenance(
            checkpoint="someone/model", license="Apache-2.0", attribution="by someone", exported_by="a test", files={}
        ),
        geometry=Geometry(
            latent_channels=4,
            vae_scale_factor_spatial=8,
            vae_scale_factor_temporal=4,
            patch_size=(1, 2, 2),
            max_patches=8,
            vae_decoder_halo=1,
        ),
        frames=Frames(first=1, step=4, most=29, frames_per_call=(1, 4)),
        conditionings=(
            TextConditioning(
                name="prompt",
                negative="negative_prompt",
                role="text_encoder",
                feeds={"prompt_embeds": "prompt_embeds"},
                max_sequence_length=8,
                pad_token_id=0,
                cleaning="spaces",
            ),
        ),
        experts=(Expert(),),
        draws=(Draw(input="latents", shape=(4, "F", "h", "w")),),
        defaults=Defaults(
            height=HEIGHT,
            width=WIDTH,
            num_frames=5,
            num_inference_steps=3,
            guidance_scale=3.0,
            fps=8,
            negative_prompt="",
            scheduler="euler",
        ),
        scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        graphs=graphs(ends),
        files={},
        demonstration=Demonstration(pattern="a circle", description="a circle"),
    )
    write_manifest(root, manifest)
    return root


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeBackend]:
    fake = FakeBackend(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    with only_backends(fake):
        yield fake
