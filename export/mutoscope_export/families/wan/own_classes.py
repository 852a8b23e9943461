"""What the checkpoint's own classes compute, in the terms of the graphs.

Knows how `WanPipeline` calls its networks. Knows nothing of the modules that are exported, which are compared with it.
Networks run in the type they are stored in, because a second copy in float32 may not fit into memory.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from transformers import CLIPVisionModel, UMT5EncoderModel

_TEXT_TOKENS = 512  # a constant in `WanAttnProcessor`


def prompt_embeds(encoder: UMT5EncoderModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """The output of the `text_encoder` graph."""
    hidden: Tensor = encoder(**inputs).last_hidden_state
    return hidden.float() * inputs["attention_mask"][..., None]


def image_embeds(model: CLIPVisionModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """The output of the `image_encoder` graph."""
    hidden: Tensor = model(inputs["pixels"].to(model.dtype), output_hidden_states=True).hidden_states[-2]
    return hidden.float().flatten(0, 1)


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
    further = {}
    if "image_embeds" in inputs:
        inputs = {**inputs, "prompt_embeds": _of_512_tokens(inputs["prompt_embeds"])}
        pictures = 1 if transformer.config.pos_embed_seq_len is None else 2
        tokens = inputs["image_embeds"].unflatten(0, (pictures, -1))
        further["encoder_hidden_states_image"] = tokens.repeat(branches, 1, 1).to(dtype)
    if "control" in inputs:  # of `WanVACEPipeline`
        further["control_hidden_states"] = inputs["control"].to(dtype).expand(branches, -1, -1, -1, -1)
        further["control_hidden_states_scale"] = inputs["control_scale"].to(dtype)
    velocities: Tensor = transformer(
        latents.to(dtype).expand(branches, -1, -1, -1, -1),
        timestep.expand(branches, *timestep.shape[1:]),
        inputs["prompt_embeds"].to(dtype),
        **further,
    ).sample
    velocity = torch.einsum("b,bcfhw->cfhw", inputs["guidance_weights"], velocities.float())
    moved = torch.einsum("jk,kcfhw->jcfhw", inputs["solver_a"], inputs["state"])
    moved = moved + torch.einsum("k,cfhw->kcfhw", inputs["solver_b"], velocity)
    return moved if is_given is None else torch.where(is_given, inputs["condition"], moved)


def _of_512_tokens(prompt_embeds: Tensor) -> Tensor:
    """The same for an attention, with as many tokens as the class takes for granted where there are pictures, too.

    A softmax over tokens that each are there n times mixes them as over one of each.
    """
    times, left = divmod(_TEXT_TOKENS, prompt_embeds.shape[1])
    assert left == 0, "tokens must divide 512"
    return prompt_embeds.repeat_interleave(times, dim=1)


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
