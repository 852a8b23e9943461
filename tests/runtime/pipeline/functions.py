"""What the graphs of a small bundle compute, for the fake backend."""

from __future__ import annotations

from typing import Any

import numpy as np

PROMPT = "a red circle"
SHORT_OF_MEMORY = 60_000  # bytes: enough for each stage by itself, and too few to keep all loaded


def network(latents: Any, timestep: float, embeds: Any) -> Any:
    """A velocity that depends on everything the network is given."""
    return 0.5 * latents + float(embeds.mean()) / 20 + timestep / 2000


def encode(input_ids: Any, mask: Any) -> Any:
    return ((input_ids * mask)[..., None] * np.linspace(0.5, 1, 6)).astype(np.float32)


def text_encoder(input_ids: Any, attention_mask: Any) -> Any:
    return {"prompt_embeds": encode(input_ids, attention_mask)}


def denoiser(
    latents: Any, state: Any, timestep: Any, prompt_embeds: Any, guidance_weights: Any, solver_a: Any, solver_b: Any
) -> Any:
    branches = [network(latents, timestep[0], embeds) for embeds in prompt_embeds]
    v = np.tensordot(guidance_weights, np.stack(branches), 1)
    next_state = np.tensordot(solver_a, state, 1) + np.multiply.outer(solver_b, v)
    return {"next_state": next_state.astype(np.float32), "velocity_peak": np.abs(v).max().astype(np.float32)}


def vae_features_first(latents: Any) -> Any:
    return {"features": features(latents, 0 * latents), "cache_0": latents}


def vae_features_next(latents: Any, cache_0: Any) -> Any:
    return {"features": features(latents, cache_0), "next_cache_0": latents}


def vae_decoder_first(features: Any) -> Any:
    return {"frames": pixels(features, 1), "cache_0": features, "cache_1": features[:, :1]}


def vae_decoder_next(features: Any, cache_0: Any, cache_1: Any) -> Any:
    return {"frames": pixels(features + cache_0, 4), "next_cache_0": features, "next_cache_1": cache_1}


def features(latents: Any, before: Any) -> Any:
    """[1, C, 1, h, w] -> f32 [1, C, h, w], each of which depends on the whole frame and the frame before"""
    return (latents + latents.mean() + before / 2)[:, :, 0]


def pixels(features: Any, frames: int) -> Any:
    """[1, C, h, w] -> u8 [frames, H, W, 3], each from its pixel and those beside it, none beyond the border"""
    beside = np.pad(features, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = features.shape[2:]
    around = sum(beside[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3))
    image = np.clip(128 + 5 * around[0, :3], 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return np.stack([image.repeat(8, 0).repeat(8, 1)] * frames)


GRAPHS = (text_encoder, denoiser, vae_features_first, vae_features_next, vae_decoder_first, vae_decoder_next)
