"""What the authors of the line would run: a plain loop in torch over the checkpoint's own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from transformers import BertModel, PreTrainedTokenizerFast

from .networks import SCALE, WINDOW_FRAMES, WINDOW_LATENTS, DriftDecoder, DriftLetters, DriftTransformer


class DriftPipeline:
    """The line's own pipeline."""

    def __init__(self, checkpoint: Path) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint / "tokenizer")
        self.tokenizer_2 = PreTrainedTokenizerFast.from_pretrained(checkpoint / "tokenizer_2")
        self.text_encoder = BertModel.from_pretrained(checkpoint / "text_encoder").eval()
        self.text_encoder_2: Any = DriftLetters.from_pretrained(checkpoint / "text_encoder_2").eval()
        self.transformer: Any = DriftTransformer.from_pretrained(checkpoint / "transformer").eval()
        self.vae: Any = DriftDecoder.from_pretrained(checkpoint / "vae").eval()
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(checkpoint / "scheduler")

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        height: int = 32,
        width: int = 48,
        num_frames: int = 18,
        num_inference_steps: int = 4,
        guidance_scale: float = 2.0,
        fps: float = 12.0,
        seed: int = 0,
    ) -> Tensor:
        """Frames u8 `[T, H, W, 3]`."""
        rows, columns = height // SCALE, width // SCALE
        random, channels = torch.Generator().manual_seed(seed), self.transformer.config.channels
        latents = torch.randn(channels, WINDOW_LATENTS * num_frames // WINDOW_FRAMES, rows, columns, generator=random)
        texture = torch.randn(channels, rows, columns, generator=random)
        positive, negative = self.encode(prompt), self.encode(negative_prompt)
        rate = torch.tensor([fps])
        self.scheduler.set_timesteps(num_inference_steps)
        for timestep in self.scheduler.timesteps:
            velocity = self.transformer(latents[None], timestep[None], *positive, rate, texture)[0]
            if guidance_scale > 1:
                away = self.transformer(latents[None], timestep[None], *negative, rate, texture)[0]
                velocity = away + guidance_scale * (velocity - away)
            latents = self.scheduler.step(velocity, timestep, latents).prev_sample
        pixels = self.vae.decode(latents).permute(0, 2, 3, 1)
        return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)

    def encode(self, prompt: str) -> tuple[Tensor, Tensor]:
        """By words `[1, L, D]`, zero where there is no token; by letters `[1, D]`, without spaces at the ends."""
        tokens = self.tokenizer(prompt, padding="max_length", return_tensors="pt")
        hidden = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        letters = self.tokenizer_2(" ".join(prompt.split()), return_tensors="pt")
        sound = self.text_encoder_2(letters.input_ids, letters.attention_mask)
        return hidden * tokens.attention_mask[..., None], sound
