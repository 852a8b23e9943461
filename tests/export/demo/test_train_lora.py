"""The LoRA's training changes the LoRA alone, and its file gives Diffusers the network that was trained."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from mutoscope_export.demo import train_lora
from mutoscope_export.demo.encoding import Clips
from mutoscope_export.demo.grammar import COLOURS, LEARNED_COLOURS, all_scenes
from mutoscope_export.demo.text import build_tokenizer
from mutoscope_export.demo.train_denoiser import TextToLatents

pytest.importorskip("peft")

LATENTS = (16, 2, 4, 4)


def clips(colours, seed):
    scenes = all_scenes(colours)[:8]
    latents = np.random.default_rng(seed).standard_normal((len(scenes), *LATENTS)).astype(np.float16)
    return Clips(latents, scenes)


def velocity(transformer):
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn((1, *LATENTS), generator=generator), torch.randn((1, 4, 128), generator=generator)
    with torch.no_grad():
        return transformer(latents, torch.tensor([700.0]), text, return_dict=False)[0]


@pytest.fixture(scope="module")
def trained():
    """The model before and after two steps, and what was returned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_lora, "BATCH_SIZE", 4)
        torch.manual_seed(0)
        tokenizer = build_tokenizer()
        model = TextToLatents(tokenizer).eval()
        before = deepcopy(model)
        factors = train_lora.train_lora(model, tokenizer, clips(LEARNED_COLOURS, 1), clips(COLOURS, 2), steps=2, seed=0)
    return before, model, factors


def test_the_model_under_the_lora_stays_as_it_was(trained) -> None:
    before, model, _ = trained
    kept = {
        name.replace(".base_layer", ""): value for name, value in model.state_dict().items() if ".lora_" not in name
    }
    torch.testing.assert_close(kept, before.state_dict(), rtol=0, atol=0)


def test_each_linear_layer_of_the_blocks_and_of_the_text_has_its_factors(trained) -> None:
    before, _, factors = trained
    linear = {name for name, module in before.transformer.named_modules() if type(module) is torch.nn.Linear}
    expected = {name for name in linear if name.startswith(("blocks.", "condition_embedder.text_embedder."))}
    assert {name.rsplit(".lora_", 1)[0] for name in factors} == expected
    assert sum(value.numel() * value.element_size() for value in factors.values()) < 1_000_000


def test_the_file_gives_diffusers_the_network_that_was_trained(trained, tmp_path) -> None:
    before, model, factors = trained
    WanPipeline.save_lora_weights(tmp_path, factors, weight_name="example.safetensors")
    read = deepcopy(before.transformer)
    state = WanPipeline.lora_state_dict(tmp_path, weight_name="example.safetensors")
    read.load_lora_adapter(state, prefix="transformer")
    expected, base = velocity(model.transformer), velocity(before.transformer)
    assert torch.linalg.vector_norm(velocity(read) - expected) < 0.01 * torch.linalg.vector_norm(expected - base)


def test_training_goes_on_from_a_file_that_it_wrote(trained, tmp_path) -> None:
    before, _, factors = trained
    file = tmp_path / "example.safetensors"
    WanPipeline.save_lora_weights(tmp_path, factors, weight_name=file.name)
    taken = (deepcopy(before), build_tokenizer(), clips(LEARNED_COLOURS, 1), clips(COLOURS, 2))
    read = train_lora.train_lora(*taken, steps=0, seed=0, start_from=file)
    torch.testing.assert_close(read, factors, rtol=0, atol=0)


def test_the_loss_of_what_is_learned_falls(capsys, monkeypatch) -> None:
    monkeypatch.setattr(train_lora, "BATCH_SIZE", 4)
    monkeypatch.setattr(train_lora, "REPORT_EVERY", 15)
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    few = clips(LEARNED_COLOURS, 1)
    train_lora.train_lora(TextToLatents(tokenizer), tokenizer, few, few, steps=60, seed=0)
    first, *_, last = (float(line.rsplit(maxsplit=1)[1]) for line in capsys.readouterr().out.splitlines())
    assert last < 0.9 * first
