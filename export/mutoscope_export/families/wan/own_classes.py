"""What the checkpoint's own classes compute, in the terms of the graphs.

Knows how `WanPipeline` calls its networks. Knows nothing of the modules that are exported, which are compared with it.
Networks run in the type they are stored in, because a second copy in float32 may not fit into memory.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from transformers import UMT5EncoderModel


def prompt_embeds(encoder: UMT5EncoderModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """The output of the `text_encoder` graph."""
    hidden: Tensor = encoder(**inputs).last_hidden_state
    return hidden.float() * inputs["attention_mask"][..., None]


def next_state(transformer: WanTransformer3DModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """The first output of the `denoiser` graph; where a picture may be given, as `WanImageToVideoPipeline` does."""
    dtype = transformer.patch_embedding.weight.dtype
    branches, latents, timestep = len(inputs["prompt_embeds"]), inputs["latents"], inputs["timestep"]
    given = inputs.get("given")
    is_given = given[:, None, None] > 0 if given is not None and given.ndim == 1 else None
    if given is not None and given.ndim == 2:  # each frame of a whole clip
        mask = given[..., None, None].expand(*given.shape, *latents.shape[2:])
        latents = torch.cat([latents, mask, inputs["condition"]])
    if is_given is not None:
        latents = torch.where(is_given, inputs["condition"], latents)
        _, rows, columns = transformer.config.patch_size
        tokens = latents.shape[2] // rows * (latents.shape[3] // columns)
        timestep = ((1 - inputs["given"]) * timestep).repeat_interleave(tokens)[None]  # of each token
    velocities: Tensor = transformer(
        latents.to(dtype).expand(branches, -1, -1, -1, -1),
        timestep.expand(branches, *timestep.shape[1:]),
        inputs["prompt_embeds"].to(dtype),
    ).sample
    velocity = torch.einsum("b,bcfhw->cfhw", inputs["guidance_weights"], velocities.float())
    moved = torch.einsum("jk,kcfhw->jcfhw", inputs["solver_a"], inputs["state"])
    moved = moved + torch.einsum("k,cfhw->kcfhw", inputs["solver_b"], velocity)
    return moved if is_given is None else torch.where(is_given, inputs["condition"], moved)


def condition(vae: AutoencoderKLWan, levels: Tensor) -> Tensor:
    """Frames in levels 0..255 `[T, H, W, 3]` -> latents `[C, F, h, w]` as the denoiser takes them, clip whole."""
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    clip = levels.permute(3, 0, 1, 2)[None] / 255 * 2 - 1
    latents: Tensor = vae.encode(clip).latent_dist.mode()[0]
    return (latents - mean) / std


def frames(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Latents `[C, F, h, w]` as the denoiser leaves them -> u8 `[T, H, W, 3]`, the whole clip at once."""
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    clip: Tensor = vae.decode((latents * std + mean)[None]).sample[0].permute(1, 2, 3, 0)
    return ((clip / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
