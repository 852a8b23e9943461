"""Trains the built-in `WanTransformer3DModel` and its `UMT5EncoderModel` together, by flow matching on VAE latents.

One model learns both uses: clips from text alone, and clips whose first frame is given as a picture.

Knows latents, captions and noise levels. Knows nothing of pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from .encoding import Clips, encode_clips, encode_pictured_clips
from .grammar import PHRASINGS, Scene
from .text import MAX_SEQUENCE_LENGTH, build_tokenizer, text_encoder_config
from .train_vae import LATENT_CHANNELS
from .training import Training, TrainingSchedule, averaged_weights

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
PICTURED_SHARE = 0.5  # of a batch: clips whose first latent frame is given, clean, and carries no loss
SAVE_EVERY_S = 900.0
PROMPT_DROPOUT = 0.1  # the share of clips that teach the empty prompt, for guidance
NOISE_SHIFT = 2.0  # towards noise, where colour, place and motion are decided


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
        """Velocity `[B, C, F, h, w]` for noisy latents at noise level `sigma`: `[B]`, or `[B, F]` by frame."""
        prompt_embeds = self.text_encoder(input_ids, attention_mask).last_hidden_state
        prompt_embeds = prompt_embeds * attention_mask.unsqueeze(-1)
        padding = MAX_SEQUENCE_LENGTH - prompt_embeds.shape[1]
        prompt_embeds = nn.functional.pad(prompt_embeds, (0, 0, 0, padding))
        timestep = sigma * 1000
        if sigma.ndim == 2:  # each token has its frame's, as Diffusers feeds it where timesteps are expanded
            _, rows, columns = CONFIG["patch_size"]
            timestep = timestep.repeat_interleave(latents.shape[3] // rows * (latents.shape[4] // columns), dim=1)
        velocity: Tensor = self.transformer(latents, timestep, prompt_embeds, return_dict=False)[0]
        return velocity


def levels_of_frames(levels: Tensor, frames: int, pictured: Tensor) -> Tensor:
    """Noise levels `[B, F]` from those of the clips, `[B]`: 0 for the first frame of a clip whose picture is given."""
    each = levels[:, None].repeat(1, frames)
    each[pictured, 0] = 0.0
    return each


@dataclass(frozen=True)
class Noised:
    """Clean latents `[B, C, F, h, w]`, their noise, and its levels `[B, F]`."""

    clean: Tensor
    noise: Tensor
    levels: Tensor

    @property
    def noisy(self) -> Tensor:
        """The latents that the network is given, `[B, C, F, h, w]`."""
        return torch.lerp(self.clean, self.noise, self.levels[:, None, :, None, None])


def add_noise(clean: Tensor, pictured: Tensor, rng: np.random.Generator) -> Noised:
    """Draws noise and its levels, spread evenly over the batch and then shifted towards noise.

    Args:
        clean: latents `[B, C, F, h, w]`.
        pictured: the clips whose first frame is given, bool `[B]`.
        rng: decides everything.
    """
    count = len(clean)
    uniform = rng.permutation(count) / count + rng.random(count) / count
    level = torch.from_numpy((NOISE_SHIFT * uniform / (1 + (NOISE_SHIFT - 1) * uniform)).astype(np.float32))
    noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32)).to(clean.device)
    return Noised(clean, noise, levels_of_frames(level.to(clean.device), clean.shape[2], pictured))


def losses(velocity: Tensor, noised: Noised, pictured: Tensor) -> dict[str, Tensor]:
    """The squared error of the velocity: of all, from text, and from pictures. A frame at noise level 0 has no part.

    Args:
        velocity: what the model says, `[B, C, F, h, w]`.
        noised: what it was asked.
        pictured: the clips whose first frame was given, bool `[B]`.
    """
    squares = (velocity.float() - (noised.noise - noised.clean)).square().mean(dim=(1, 3, 4))
    asked = noised.levels > 0
    return {
        "loss": squares[asked].mean(),
        "from_text": squares[~pictured][asked[~pictured]].mean().detach(),
        "from_pictures": squares[pictured][asked[pictured]].mean().detach(),
    }


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
    kept: dict[str, Any] = {"device": device, "seed": seed}
    vae.to(device).eval()
    from_text = encode_clips(vae, clip_count, folder / "latents.npy", **kept)
    from_pictures = encode_pictured_clips(vae, clip_count, folder / "pictured.npy", **kept)
    training = Training(model, schedule, folder, save_every_s=SAVE_EVERY_S)
    pictured = torch.arange(BATCH_SIZE, device=device) < round(PICTURED_SHARE * BATCH_SIZE)

    def loss_of_step(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((seed, step))
        count = int(pictured.sum())
        latents, captions = draw(((from_pictures, count), (from_text, BATCH_SIZE - count)), rng)
        text = tokenizer(captions, padding=True, return_tensors="pt").to(device)
        noised = add_noise(torch.from_numpy(latents).to(device), pictured, rng)
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):  # no faster on CPUs without AMX
            velocity = model(noised.noisy, noised.levels, text.input_ids, text.attention_mask)
        return losses(velocity, noised, pictured)

    training.run(loss_of_step)
    training.load_averaged()
    return model.eval(), tokenizer


def trained_so_far(folder: Path) -> tuple[TextToLatents, T5Tokenizer]:
    """The averaged model of a training that `train_denoiser` keeps in `folder`, as it was saved last."""
    tokenizer = build_tokenizer()
    model = TextToLatents(tokenizer)
    model.load_state_dict(averaged_weights(folder))
    return model.eval(), tokenizer


def draw(parts: Iterable[tuple[Clips, int]], rng: np.random.Generator) -> tuple[NDArray[np.float32], list[str]]:
    """So many clips of each part, one part after the other: their latents and a caption of each."""
    latents, captions = [], []
    for clips, count in parts:
        chosen = rng.integers(len(clips.scenes), size=count)
        latents.append(clips.latents[chosen].astype(np.float32))
        captions += [_caption(clips.scenes[index], rng) for index in chosen]
    return np.concatenate(latents), captions


def _caption(scene: Scene, rng: np.random.Generator) -> str:
    if rng.random() < PROMPT_DROPOUT:
        return ""
    caption = scene.prompt(0 if rng.random() < 0.7 else int(rng.integers(len(PHRASINGS))))
    if rng.random() < 0.5:
        caption = caption.replace("a orange", "an orange")
    if rng.random() < 0.15:
        caption = caption[0].upper() + caption[1:]
    return caption + "." if rng.random() < 0.1 else caption
