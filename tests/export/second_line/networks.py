"""The networks of a small model line that is nobody's: what its authors would publish, as they would call it.

A video of it comes in windows of two latent frames, six frames each. Two encoders read its prompt, one in words, one in
letters. Its transformer is told the frame rate, and is given a texture that is drawn from the seed.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

WINDOW_LATENTS, WINDOW_FRAMES, SCALE = 2, 6, 4
LETTERS_PER_SOUND = 8  # so that a long prompt is not much louder than a short one


class DriftLetters(ModelMixin, ConfigMixin):
    """What a prompt sounds like: one vector for all of its letters."""

    @register_to_config
    def __init__(self, vocab_size: int, max_letters: int, width: int = 8) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(vocab_size, width), nn.Embedding(max_letters, width)
        self.out = nn.Linear(width, width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask `[B,L]` -> `[B,D]`."""
        heard = torch.tanh(self.letters(input_ids) + self.places.weight[: input_ids.shape[1]])
        return self.out((heard * attention_mask[..., None]).sum(1) / LETTERS_PER_SOUND)


class DriftTransformer(ModelMixin, ConfigMixin):
    """Convolutions over space and time around one attention to the prompt."""

    @register_to_config
    def __init__(self, channels: int = 3, width: int = 16, text_width: int = 12, sound_width: int = 8) -> None:
        super().__init__()
        self.conv_in = nn.Conv3d(2 * channels, width, 3, padding=1)
        self.time, self.rate, self.sound = nn.Linear(1, width), nn.Linear(1, width), nn.Linear(sound_width, width)
        self.to_q = nn.Linear(width, width)
        self.to_k, self.to_v = nn.Linear(text_width, width), nn.Linear(text_width, width)
        self.to_out = nn.Linear(width, width)
        self.conv_out = nn.Conv3d(width, channels, 3, padding=1)

    def forward(
        self, latents: Tensor, timestep: Tensor, context: Tensor, sound: Tensor, fps: Tensor, texture: Tensor
    ) -> Tensor:
        """Latents `[B,C,F,h,w]`, timestep and fps `[B]`, context `[B,L,D]`, sound `[B,D]`, texture `[C,h,w]` ->
        velocity."""
        spread = texture[None, :, None].expand_as(latents)
        hidden = self.conv_in(torch.cat([latents, spread], dim=1))
        told = self.time(timestep[:, None] / 1000) + self.rate(fps[:, None] / 30) + self.sound(sound)
        hidden = F.silu(hidden + told[:, :, None, None, None])
        tokens = hidden.flatten(2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(context), self.to_v(context))
        hidden = hidden + self.to_out(mixed).transpose(1, 2).reshape(hidden.shape)
        return self.conv_out(F.silu(hidden))


class DriftDecoder(ModelMixin, ConfigMixin):
    """Latents to frames, window by window; a window goes on from what the one before looked like."""

    @register_to_config
    def __init__(self, channels: int = 3, width: int = 16, mean: float = 0.3, std: float = 1.4) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(WINDOW_LATENTS * channels, width, 3, padding=1)
        self.conv_mid = nn.Conv2d(width, width, 3, padding=1)
        self.carry = nn.Conv2d(width, width, 1)
        self.conv_out = nn.Conv2d(width, 3 * WINDOW_FRAMES, 3, padding=1)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents `[C,F,h,w]`, normalised -> RGB in -1..1, `[T,3,H,W]`."""
        frames, before = [], None
        for window in (latents * self.config.std + self.config.mean).split(WINDOW_LATENTS, dim=1):
            hidden = F.silu(self.conv_in(window.flatten(0, 1)[None]))
            hidden = self.conv_mid(hidden + hidden.mean((2, 3), keepdim=True))
            if before is not None:
                hidden = hidden + self.carry(before)
            before = hidden
            large = F.interpolate(F.silu(hidden), scale_factor=SCALE, mode="nearest")
            frames.append(self.conv_out(large).unflatten(1, (WINDOW_FRAMES, 3))[0])
        return torch.cat(frames)
