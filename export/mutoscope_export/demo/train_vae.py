"""Trains the built-in `AutoencoderKLWan`: single frames first, then short clips, then whole ones.

Knows pixels and reconstruction. Knows nothing of prompts or denoising.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import nn

from .grammar import all_scenes, sample_scenes
from .renderer import HEIGHT, NUM_FRAMES, render
from .training import Training, TrainingSchedule

LATENT_CHANNELS = 16
CONFIG: dict[str, Any] = {
    "base_dim": 16,
    "decoder_base_dim": 24,
    "z_dim": LATENT_CHANNELS,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * LATENT_CHANNELS,
    "latents_std": [1.0] * LATENT_CHANNELS,
}
KL_WEIGHT = 1e-5


@dataclass(frozen=True)
class Phase:
    """One part of the training: from `start`, a fraction of all steps, with clips of this size."""

    start: float
    num_frames: int
    pixels: int
    batch_size: int


SHORT_CLIPS: Sequence[Phase] = (
    Phase(0.0, 1, 64, 16),
    Phase(0.25, 5, 64, 6),
    Phase(0.75, 13, 64, 3),
    Phase(0.92, 9, HEIGHT, 3),
)
WHOLE_CLIPS: Sequence[Phase] = (Phase(0.0, NUM_FRAMES, 64, 4), Phase(0.67, NUM_FRAMES, HEIGHT, 3))
SHAPE_WEIGHT = 4.0  # more, for pixels on and around the shape: a small one covers 2 % of a clip


def render_pool(count: int, seed: int) -> NDArray[np.uint8]:
    """Renders `count` clips of random scenes: uint8 `[N, T, H, W, 3]`."""
    rng = np.random.default_rng(seed)
    return np.stack([render(scene, rng) for scene in sample_scenes(count, rng, all_scenes())])


def to_model(clips: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 `[B, T, H, W, 3]` -> float32 `[B, 3, T, H, W]` in -1..1."""
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).contiguous().float().div_(127.5).sub_(1.0)


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of values in -1..1."""
    return 10 * math.log10(4.0 / mean_squared_error)


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLWan, clips: NDArray[np.uint8]) -> float:
    """PSNR in dB of whole clips through encoder mean and decoder."""
    device = next(vae.parameters()).device
    errors = []
    for start in range(0, len(clips), 8):
        original = to_model(clips[start : start + 8]).to(device)
        decoded = vae.decode(vae.encode(original).latent_dist.mode()).sample
        errors.append((decoded - original).square().mean(dim=(1, 2, 3, 4)))
    return psnr(float(torch.cat(errors).mean()))


def weighted_errors(
    error: torch.Tensor, original: torch.Tensor, shape_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of the squared and of the absolute error, where a pixel near the shape counts `1 + shape_weight` times.

    Args:
        error: of a reconstruction, f32 `[B, 3, T, H, W]`, which is added to values in -1..1.
        original: the clips, f32 `[B, 3, T, H, W]` in -1..1; what is not their plain background is the shape.
        shape_weight: 0 counts every pixel once.
    """
    weights = 1 + shape_weight * _near_shape(original)
    return (weights * error.square()).mean(), (weights * error.abs()).mean()


def train_vae(
    folder: Path, *, steps: int, device: str, seed: int = 0, start_from: AutoencoderKLWan | None = None
) -> AutoencoderKLWan:
    """Trains, or goes on training, and returns the averaged model with its latents measured and normalised.

    From nothing it learns short clips. From a model that has, `start_from`, it learns whole ones, at
    lower learning rates and with more weight on the shapes.
    """
    torch.manual_seed(seed)
    schedule = TrainingSchedule(steps, average_decay=0.998)
    if start_from is None:
        vae, phases, shape_weight = _untrained().to(device), SHORT_CLIPS, 0.0
    else:
        vae, phases, shape_weight = start_from.to(device).train(), WHOLE_CLIPS, SHAPE_WEIGHT
        schedule = schedule.gentler(7)  # at half the rates it first got three times worse
    training = Training(vae, schedule, folder)
    pool = render_pool(1500, seed)
    unseen = render_pool(4, seed + 1)

    def loss_of_step(step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((seed, step))
        torch.manual_seed(seed * 1_000_003 + step)
        phase = next(phase for phase in reversed(phases) if step >= phase.start * steps)
        original = to_model(_crops(pool, phase, rng)).to(device)
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(original).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        # The decoder clamps, which stops gradients outside -1..1; flat areas in range carry it back.
        error = decoded.float() - original
        squared, absolute = weighted_errors(error, original, shape_weight)
        divergence = posterior.kl().float().mean() / posterior.mean[0].numel()
        loss = 4 * squared + absolute + KL_WEIGHT * divergence
        return {"loss": loss, "squared": error.square().mean().detach(), "kl": divergence.detach()}

    def evaluate() -> dict[str, float]:
        current = {name: value.clone() for name, value in vae.state_dict().items()}
        training.load_averaged()
        quality = reconstruction_psnr(vae, unseen)
        vae.load_state_dict(current)
        return {"psnr_db": quality}

    training.run(loss_of_step, evaluate, evaluate_every=600)
    training.load_averaged()
    _measure_latents(vae, pool[:200], device)
    return vae


def _untrained() -> AutoencoderKLWan:
    vae = AutoencoderKLWan(**CONFIG)
    with torch.no_grad():  # the latents begin with little noise; at the usual start the noise hides them for long
        vae.quant_conv.weight[LATENT_CHANNELS:].zero_()
        vae.quant_conv.bias[LATENT_CHANNELS:].fill_(-6.0)
    return vae


def _near_shape(original: torch.Tensor) -> torch.Tensor:
    """1 on pixels of the shape and up to 4 pixels beside it, 0 on plain background: `[B, 1, T, H, W]`."""
    background = original.flatten(2).median(dim=2).values[:, :, None, None, None]
    shape = ((original - background).norm(dim=1, keepdim=True) > 0.25).float()
    return nn.functional.max_pool3d(shape, (1, 9, 9), stride=1, padding=(0, 4, 4))


def _crops(pool: NDArray[np.uint8], phase: Phase, rng: np.random.Generator) -> NDArray[np.uint8]:
    crops = []
    for clip in rng.integers(len(pool), size=phase.batch_size):
        first = rng.integers(pool.shape[1] - phase.num_frames + 1)
        top, left = rng.integers(HEIGHT - phase.pixels + 1, size=2)
        frames = pool[clip, first : first + phase.num_frames]
        crops.append(frames[:, top : top + phase.pixels, left : left + phase.pixels])
    return np.stack(crops)


@torch.no_grad()
def _measure_latents(vae: AutoencoderKLWan, clips: NDArray[np.uint8], device: str) -> None:
    """Writes each channel's mean and standard deviation into the configuration, as the pipeline expects them."""
    latents = torch.cat(
        [vae.encode(to_model(clips[i : i + 8]).to(device)).latent_dist.mode() for i in range(0, len(clips), 8)]
    )
    vae.register_to_config(
        latents_mean=latents.mean(dim=(0, 2, 3, 4)).tolist(), latents_std=latents.std(dim=(0, 2, 3, 4)).tolist()
    )
