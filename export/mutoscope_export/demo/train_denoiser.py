"""Trains the built-in `WanTransformer3DModel` and its `UMT5EncoderModel` together, by flow matching on VAE latents.

Knows latents, captions and noise levels. Knows nothing of pixels beyond rendering the clips to encode.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from .grammar import PHRASINGS, Scene, all_scenes
from .renderer import render
from .text import MAX_SEQUENCE_LENGTH, build_tokenizer, text_encoder_config
from .train_vae import LATENT_CHANNELS, to_model
from .training import Training, TrainingSchedule, sha256_of_weights

TEXT_WIDTH = 128
CONFIG: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 48,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 128,
    "ffn_dim": 768,
    "num_layers": 8,
    "rope_max_seq_len": 64,
}
BATCH_SIZE = 48
PROMPT_DROPOUT = 0.1  # the share of clips that teach the empty prompt, for guidance
NOISE_SHIFT = 2.0  # towards noise, where colour, place and motion are decided


@dataclass(frozen=True)
class Clips:
    """Encoded clips: normalised latents f16 `[N, C, F, h, w]`, and the scene of each."""

    latents: NDArray[np.float16]
    scenes: list[Scene]


class TextToLatents(nn.Module):
    """What is trained: the text encoder and the transformer, with `WanPipeline`'s padding between them."""

    def __init__(self, tokenizer: T5Tokenizer) -> None:
        super().__init__()
        config = UMT5Config(**text_encoder_config(len(tokenizer)), attn_implementation="eager")
        self.text_encoder = UMT5EncoderModel(config)
        self.transformer = WanTransformer3DModel(**CONFIG)

    def start_from(self, checkpoint: Path) -> None:
        """Takes over the weights of a checkpoint of the same model."""
        self.text_encoder.load_state_dict(UMT5EncoderModel.from_pretrained(checkpoint / "text_encoder").state_dict())
        self.transformer.load_state_dict(WanTransformer3DModel.from_pretrained(checkpoint / "transformer").state_dict())

    def forward(self, latents: Tensor, sigma: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Velocity `[B, C, F, h, w]` for noisy latents at noise level `sigma` `[B]`."""
        prompt_embeds = self.text_encoder(input_ids, attention_mask).last_hidden_state
        prompt_embeds = prompt_embeds * attention_mask.unsqueeze(-1)
        padding = MAX_SEQUENCE_LENGTH - prompt_embeds.shape[1]
        prompt_embeds = nn.functional.pad(prompt_embeds, (0, 0, 0, padding))
        velocity: Tensor = self.transformer(latents, sigma * 1000, prompt_embeds, return_dict=False)[0]
        return velocity


@torch.no_grad()
def encode_clips(vae: AutoencoderKLWan, count: int, file: Path, *, device: str, seed: int) -> Clips:
    """Renders and encodes clips of every scene that is not held out, or reads them back from `file`.

    Beside `file` stands what its latents were made from.

    Raises:
        ValueError: `file` was made from something else, so that captions would not fit its latents.
    """
    statistics = [list(vae.config.latents_mean), list(vae.config.latents_std)]
    made_from = {"count": count, "seed": seed, "vae_sha256": sha256_of_weights(vae, statistics)}
    scenes = [scene for scene in all_scenes() if not scene.held_out]
    np.random.default_rng(seed).shuffle(scenes)
    chosen = [scenes[i % len(scenes)] for i in range(count)]
    if not file.exists():
        rng = np.random.default_rng(seed)
        mean, std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        batches = []
        for start in range(0, count, 16):
            clips = np.stack([render(scene, rng) for scene in chosen[start : start + 16]])
            with torch.autocast(device, torch.bfloat16):
                latents = vae.encode(to_model(clips).to(device)).latent_dist.mode()
            batches.append(((latents.float() - mean) / std).half().cpu().numpy())
        file.with_suffix(".json").write_text(json.dumps(made_from) + "\n", encoding="utf-8", newline="\n")
        temporary = file.with_suffix(".tmp.npy")
        np.save(temporary, np.concatenate(batches))
        os.replace(temporary, file)
    latents = np.load(file)
    _refuse_latents_of_others(file, len(latents), made_from)
    return Clips(latents, chosen)


def _refuse_latents_of_others(file: Path, count: int, made_from: dict[str, Any]) -> None:
    note = file.with_suffix(".json")
    found = json.loads(note.read_text("utf-8")) if note.exists() else made_from | {"count": count}
    if found != made_from or count != made_from["count"]:
        raise ValueError(
            f"{file} holds {count} clips made from {found}, and not from {made_from}: ask for the same again, "
            "or remove the folder it lies in to begin anew"
        )
    note.write_text(json.dumps(made_from) + "\n", encoding="utf-8", newline="\n")


def train_denoiser(
    vae: AutoencoderKLWan,
    folder: Path,
    *,
    steps: int,
    clip_count: int,
    device: str,
    seed: int = 0,
    start_from: Path | None = None,
) -> tuple[TextToLatents, T5Tokenizer]:
    """Trains, or goes on training, and returns the averaged model and its tokenizer.

    The weights begin at random, or, at half the learning rates, as those of the checkpoint `start_from`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = TextToLatents(tokenizer)
    schedule = TrainingSchedule(steps, average_decay=0.995)
    if start_from is not None:
        model.start_from(start_from)
        schedule = schedule.gentler(2)
    model.to(device)
    clips = encode_clips(vae.to(device).eval(), clip_count, folder / "latents.npy", device=device, seed=seed)
    training = Training(model, schedule, folder)

    def loss_of_step(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((seed, step))
        chosen = rng.integers(len(clips.scenes), size=BATCH_SIZE)
        clean = torch.from_numpy(clips.latents[chosen].astype(np.float32)).to(device)
        text = tokenizer(
            [_caption(clips.scenes[index], rng) for index in chosen], padding=True, return_tensors="pt"
        ).to(device)
        uniform = rng.permutation(BATCH_SIZE) / BATCH_SIZE + rng.random(BATCH_SIZE) / BATCH_SIZE  # stratified
        level = NOISE_SHIFT * uniform / (1 + (NOISE_SHIFT - 1) * uniform)
        sigma = torch.from_numpy(level.astype(np.float32)).to(device)
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32)).to(device)
        noisy = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1, 1))
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):  # no faster on CPUs without AMX
            velocity = model(noisy, sigma, text.input_ids, text.attention_mask)
        return {"loss": (velocity.float() - (noise - clean)).square().mean()}

    training.run(loss_of_step)
    training.load_averaged()
    return model.eval(), tokenizer


def _caption(scene: Scene, rng: np.random.Generator) -> str:
    if rng.random() < PROMPT_DROPOUT:
        return ""
    caption = scene.prompt(0 if rng.random() < 0.7 else int(rng.integers(len(PHRASINGS))))
    if rng.random() < 0.5:
        caption = caption.replace("a orange", "an orange")
    if rng.random() < 0.15:
        caption = caption[0].upper() + caption[1:]
    return caption + "." if rng.random() < 0.1 else caption
