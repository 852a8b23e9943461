"""What the graphs of small bundles compute, for the fake backend, and how a test computes it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from mutoscope.bundle.bundle import Bundle
from mutoscope.conditions.text import Tokenizer

PROMPT = "a red circle"
CHANNELS = 4
Velocity = Callable[..., Any]  # of latents [C, F, h, w], a timestep and the embeddings of one branch [L, 6]


def text_encoder(input_ids: Any, attention_mask: Any) -> Any:
    return {"prompt_embeds": ((input_ids * attention_mask)[..., None] * np.linspace(0.5, 1, 6)).astype(np.float32)}


def early(latents: Any, timestep: float, embeds: Any) -> Any:
    return 0.5 * latents + float(embeds.mean()) / 20 + timestep / 2000


def late(latents: Any, timestep: float, embeds: Any) -> Any:
    return 0.8 * latents - float(embeds.mean()) / 10 + timestep / 4000


def denoiser_of(velocity: Velocity) -> Callable[..., Any]:
    """A denoiser with this velocity; what it is fed beside the usual inputs changes nothing."""

    def denoiser(
        latents: Any,
        state: Any,
        timestep: Any,
        prompt_embeds: Any,
        guidance_weights: Any,
        solver_a: Any,
        solver_b: Any,
        **_: Any,
    ) -> Any:
        branches = np.stack([velocity(latents, float(timestep[0]), embeds) for embeds in prompt_embeds])
        v = np.tensordot(guidance_weights, branches, 1)
        next_state = np.tensordot(solver_a, state, 1) + np.multiply.outer(solver_b, v)
        return {"next_state": next_state.astype(np.float32), "velocity_peak": np.float32(np.abs(v).max())}

    return denoiser


def vae_features_first(latents: Any) -> Any:
    return {"features": _features(latents, 0 * latents[:, :, -1:]), "cache_0": latents[:, :, -1:]}


def vae_features_next(latents: Any, cache_0: Any) -> Any:
    return {"features": _features(latents, cache_0), "next_cache_0": latents[:, :, -1:]}


def _features(latents: Any, before: Any) -> Any:
    """[1, C, n, h, w] to [1, n * C, h, w]; each latent frame depends on its whole picture, and on what came before."""
    mixed = latents + latents.mean(axis=(1, 3, 4), keepdims=True) + before / 2
    return np.concatenate(list(mixed.transpose(2, 0, 1, 3, 4)), axis=1)


def decoders(first: int, following: int) -> dict[str, Callable[..., Any]]:
    """The two graphs of a decoder that give as many frames a call."""

    def vae_decoder_first(features: Any) -> Any:
        last = features[:, -CHANNELS:]
        return {"frames": _pixels(features, first), "cache_0": last, "cache_1": last[:, :1]}

    def vae_decoder_next(features: Any, cache_0: Any, cache_1: Any) -> Any:
        last = features[:, -CHANNELS:]
        whole = features + np.tile(cache_0 + cache_1, (1, features.shape[1] // CHANNELS, 1, 1)) / 2
        return {"frames": _pixels(whole, following), "next_cache_0": last, "next_cache_1": last[:, :1]}

    return {"vae_decoder_first": vae_decoder_first, "vae_decoder_next": vae_decoder_next}


def _pixels(features: Any, frames: int) -> Any:
    """[1, n * C, h, w] to u8 [frames, H, W, 3], each frame a little brighter than the one before, and each pixel from
    its own and those beside it, none beyond the border."""
    beside = np.pad(features, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = features.shape[2:]
    around = sum(beside[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3))
    images = [around[0, 3 * (index * len(around[0]) // frames // 4) :][:3] + index for index in range(frames)]
    pixels = np.clip(np.rint(128 + 5 * np.stack(images)), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return pixels.repeat(8, 1).repeat(8, 2)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "text_encoder": text_encoder,
    "denoiser": denoiser_of(early),
    "denoiser_low": denoiser_of(late),
    "vae_features_first": vae_features_first,
    "vae_features_next": vae_features_next,
    **decoders(1, 4),
}


def embeds_of(bundle: Bundle) -> list[Any]:
    """Of the negative prompt and the prompt, [L, 6] each."""
    texts = {"negative_prompt": bundle.manifest.defaults.negative_prompt, "prompt": PROMPT}
    tokens = Tokenizer(bundle, bundle.manifest.texts[0]).encode(texts, 24)
    return list(text_encoder(tokens.input_ids, tokens.attention_mask)["prompt_embeds"])


def denoised(bundle: Bundle, shape: tuple[int, ...], steps: int, seed: int, velocity: Velocity) -> Any:
    """Latents by the scheduler of Diffusers from the noise of torch; `velocity` takes latents and a timestep."""
    scheduler = UniPCMultistepScheduler.from_config(bundle.manifest.scheduler)
    scheduler.set_timesteps(steps)
    x = torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))
    for t in scheduler.timesteps:
        x = scheduler.step(velocity(x, float(t)), t, x).prev_sample
    return x[0].numpy()


def latents_of(fed: list[tuple[str, dict[str, Any]]]) -> Any:
    """The latents [C, F, h, w] that went into the decoder, slice by slice."""
    return np.concatenate([feeds["latents"] for role, feeds in fed if role.startswith("vae_features")], axis=2)[0]
