"""Graphs that compute next to nothing, for the fake backend, and the size of their videos."""

from __future__ import annotations

from typing import Any

import numpy as np
from mutoscope_engines.testing import Function

HEIGHT, WIDTH = 32, 48
CACHES = 3


def encode(input_ids: Any, attention_mask: Any) -> dict[str, Any]:
    return {"prompt_embeds": np.zeros((*input_ids.shape, 4), np.float32)}


def denoise(state: Any, **_: Any) -> dict[str, Any]:
    return {"next_state": state, "velocity_peak": np.float32(1)}


def look(latents: Any) -> dict[str, Any]:
    return {"features": latents[:, :, 0]}


def grey(count: int, prefix: str = "") -> Function:
    """A decoder of grey frames, whatever it is fed."""

    def decode(features: Any, **_: Any) -> dict[str, Any]:
        caches = {f"{prefix}cache_{number}": features for number in range(CACHES)}
        return {"frames": np.full((count, HEIGHT, WIDTH, 3), 128, np.uint8), **caches}

    return decode


FUNCTIONS = {
    "text_encoder": encode,
    "denoiser": denoise,
    "vae_features_first": look,
    "vae_features_next": look,
    "vae_decoder_first": grey(1),
    "vae_decoder_next": grey(4, "next_"),
}
