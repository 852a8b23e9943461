"""A small bundle that is real in everything but its graphs, which declare inputs and outputs and compute nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mutoscope.bundle import bundle as b
from mutoscope.bundle import manifest as m
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.bundles import graphs, interfaces, onnx_file

SENTENCES = ["a red circle moving right on a black background", "ein grüner Würfel, 日本語 und naïve Füße!"] * 3

MANIFEST = m.Manifest(
    format_version=m.FORMAT_VERSION,
    family="wan",
    provenance=m.Provenance(checkpoint="a/b", license="Apache-2.0", attribution="", exported_by="", files={}),
    geometry=m.Geometry(
        latent_channels=4,
        vae_scale_factor_spatial=8,
        vae_scale_factor_temporal=4,
        patch_size=(1, 2, 2),
        max_patches=64,
        vae_decoder_halo=1,
    ),
    frames=m.Frames(first=1, step=4, most=253, frames_per_call=(1, 4)),
    conditionings=(
        m.TextConditioning(
            name="prompt",
            negative="negative_prompt",
            role="text_encoder",
            feeds={"prompt_embeds": "prompt_embeds"},
            max_sequence_length=24,
            pad_token_id=0,
            cleaning="ftfy-html-spaces",
        ),
    ),
    experts=(m.Expert(),),
    draws=(m.Draw(input="latents", shape=(4, "F", "h", "w")),),
    defaults=m.Defaults(
        height=32,
        width=48,
        num_frames=9,
        num_inference_steps=4,
        guidance_scale=1.0,
        fps=8,
        negative_prompt="a black background",
        scheduler="unipc",
    ),
    scheduler={
        "_class_name": "UniPCMultistepScheduler",
        "use_flow_sigmas": True,
        "prediction_type": "flow_prediction",
        "flow_shift": 3.0,
    },
    graphs=graphs(interfaces()),
    files={},
    preview=m.Preview(weights=((10, 0, 0), (0, 10, 0), (0, 0, 10), (1, 1, 1)), bias=(128, 128, 128)),
    demonstration=m.Demonstration(pattern="a (red|green) circle", description="red and green circles"),
)


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer like UMT5's: Unigram with an end mark, padding with 0."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def make_bundle(tmp_path: Path, tokenizer_json: Path) -> Callable[..., b.Bundle]:
    """Writes a bundle. A dictionary changes fields of a record of the manifest; anything else replaces the part."""

    written: set[Path] = set()

    def make(**changes: Any) -> b.Bundle:
        root = tmp_path / "bundle"
        root.mkdir(exist_ok=True)
        (root / b.TOKENIZER).write_bytes(tokenizer_json.read_bytes())
        parts = {
            name: msgspec.structs.replace(part, **change)
            if isinstance(change, dict) and isinstance(part := getattr(MANIFEST, name), msgspec.Struct)
            else change
            for name, change in changes.items()
        }
        manifest = msgspec.structs.replace(MANIFEST, **parts)
        for graph in manifest.all_graphs:
            file = root / graph.file
            if file in written or not file.exists():  # a test may have written graphs of its own
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(onnx_file(graph))
                written.add(file)
        return b.write_manifest(root, manifest)

    return make
