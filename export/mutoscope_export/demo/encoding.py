"""What the denoiser learns from: drawn clips as latents of the VAE, kept in a file.

Knows clips, the VAE and where latents are kept. Knows nothing of noise or captions.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor

from .grammar import COLOURS, Scene, all_scenes
from .pictures import draw_pictured_clip
from .renderer import draw_trajectory, render_along
from .train_vae import to_model
from .training import sha256_of_weights

TOGETHER = 16  # clips that are encoded at a time
SAVED_TOGETHER = 16  # batches of these
SOFT_PICTURES = 4  # of so many clips: the picture comes from the decoder, as the last frame of a clip that was made
SOFT_FRAMES = 9  # of such a clip; the decoder sees little further back


@dataclass(frozen=True)
class Clips:
    """Encoded clips: normalised latents f16 `[N, C, F, h, w]`, and the scene that each one's caption is of."""

    latents: NDArray[np.float16]
    scenes: list[Scene]


def encode_clips(
    vae: AutoencoderKLWan, count: int, file: Path, *, device: str, seed: int, colours: Iterable[str] = COLOURS
) -> Clips:
    """Renders and encodes clips of every scene in these colours that is not held out, or reads them back from `file`.

    Beside `file` stands what its latents were made from.

    Raises:
        ValueError: `file` was made from something else, so that captions would not fit its latents.
    """
    scenes = [scene for scene in all_scenes(colours) if not scene.held_out]
    np.random.default_rng(seed).shuffle(scenes)
    chosen = [scenes[i % len(scenes)] for i in range(count)]
    rng = np.random.default_rng(seed)
    drawn = [(scene, draw_trajectory(scene, rng)) for scene in chosen]

    def encoded(start: int) -> Tensor:
        clips = np.stack([render_along(*each) for each in drawn[start : start + TOGETHER]])
        return _encode(vae, to_model(clips).to(device))

    made_from: dict[str, Any] = {"count": count, "seed": seed}
    if list(colours) != list(COLOURS):
        made_from["colours"] = list(colours)
    return Clips(_kept(vae, file, made_from, encoded), chosen)


def encode_pictured_clips(vae: AutoencoderKLWan, count: int, file: Path, *, device: str, seed: int) -> Clips:
    """Renders and encodes clips that begin with a picture, or reads them back from `file`.

    The first latent frame is the encoded picture. Every `SOFT_PICTURES`-th picture was encoded and decoded before, as
    the last frame of a clip, so that the model goes on from its own clips too.

    Raises:
        ValueError: `file` was made from something else, so that captions would not fit its latents.
    """
    rng = np.random.default_rng((seed, 1))
    drawn = [draw_pictured_clip(rng, held_out=False) for _ in range(count)]

    def encoded(start: int) -> Tensor:
        together = drawn[start : start + TOGETHER]
        clips = to_model(np.stack([render_along(each.shown, each.path) for each in together])).to(device)
        latents = _encode(vae, clips)
        latents[::SOFT_PICTURES, :, :1] = _encode(vae, _softened(vae, clips[::SOFT_PICTURES]))
        return latents

    made_from = {"count": count, "seed": seed, "pictures": True}
    return Clips(_kept(vae, file, made_from, encoded), [each.asked for each in drawn])


def _softened(vae: AutoencoderKLWan, clips: Tensor) -> Tensor:
    """The first frames `[B, 3, 1, H, W]`, as the decoder shows them at the end of the same clips played backwards."""
    backwards = clips[:, :, :SOFT_FRAMES].flip(2)
    with torch.autocast(clips.device.type, torch.bfloat16):
        decoded: Tensor = vae.decode(vae.encode(backwards).latent_dist.mode()).sample
    return decoded[:, :, -1:].float()


def _encode(vae: AutoencoderKLWan, clips: Tensor) -> Tensor:
    """Normalised latents f32 `[B, C, F, h, w]` of clips `[B, 3, T, H, W]` in -1..1."""
    mean, std = (
        torch.tensor(values, device=clips.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    with torch.autocast(clips.device.type, torch.bfloat16):
        latents = vae.encode(clips).latent_dist.mode()
    normalised: Tensor = (latents.float() - mean) / std
    return normalised


@torch.no_grad()
def _kept(
    vae: AutoencoderKLWan, file: Path, chosen: dict[str, Any], encoded: Callable[[int], Tensor]
) -> NDArray[np.float16]:
    """The latents in `file`. Without one, `encoded` makes them from this clip on, or goes on where it was stopped."""
    statistics = [list(vae.config.latents_mean), list(vae.config.latents_std)]
    made_from = chosen | {"vae_sha256": sha256_of_weights(vae, statistics)}
    if not file.exists():
        begun = file.with_name(f"{file.stem}.{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]}.npy")
        batches = [np.load(begun)] if begun.exists() else []
        for start in range(sum(map(len, batches)), chosen["count"], TOGETHER):
            batches.append(encoded(start).half().cpu().numpy())
            if start // TOGETHER % SAVED_TOGETHER == 0 or start + TOGETHER >= chosen["count"]:
                _save(begun, np.concatenate(batches))
        file.with_suffix(".json").write_text(json.dumps(made_from) + "\n", encoding="utf-8", newline="\n")
        os.replace(begun, file)
    latents: NDArray[np.float16] = np.load(file)
    _refuse_latents_of_others(file, len(latents), made_from)
    return latents


def _save(file: Path, latents: NDArray[np.float16]) -> None:
    temporary = file.with_suffix(".tmp.npy")
    np.save(temporary, latents)
    os.replace(temporary, file)


def _refuse_latents_of_others(file: Path, count: int, made_from: dict[str, Any]) -> None:
    note = file.with_suffix(".json")
    found = json.loads(note.read_text("utf-8")) if note.exists() else made_from | {"count": count}
    if found != made_from or count != made_from["count"]:
        raise ValueError(
            f"{file} holds {count} clips made from {found}, and not from {made_from}: ask for the same again, "
            "or remove the folder it lies in to begin anew"
        )
    note.write_text(json.dumps(made_from) + "\n", encoding="utf-8", newline="\n")
