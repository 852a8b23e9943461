"""Whole denoising runs of `WanPipeline` on a checkpoint, one component in memory at a time.

Knows how the pipeline is put together and called. Knows nothing of what is watched while it runs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from diffusers import WanPipeline
from mutoscope.bundle.bundle import Geometry
from torch import Tensor

from ...quantization.calibration import Calibration, Reference

if TYPE_CHECKING:
    from ...checkpoint.checkpoint import Checkpoint


def reference(checkpoint: Checkpoint, calibration: Calibration, geometry: Geometry, max_tokens: int) -> Reference:
    """The transformer in float32, on the GPU where torch has one; there the runs multiply in bfloat16."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prompts = _encoded_prompts(checkpoint, calibration, device, max_tokens)
    transformer = checkpoint.load("transformer").float().to(device)
    pipeline = _pipeline(checkpoint, transformer=transformer)
    pipeline.vae_scale_factor_temporal = geometry.vae_scale_factor_temporal
    pipeline.vae_scale_factor_spatial = geometry.vae_scale_factor_spatial
    request = calibration.request

    def run(index: int) -> None:
        narrow: AbstractContextManager[Any] = nullcontext()
        if device.type == "cuda":
            narrow = torch.autocast("cuda", torch.bfloat16)
        prompt_embeds, negative_prompt_embeds = prompts[index]
        with narrow:
            pipeline(
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
                height=request.height,
                width=request.width,
                num_frames=request.num_frames,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(calibration.seed + index),
                output_type="latent",
            )

    return Reference(transformer, [lambda index=index: run(index) for index in range(len(prompts))])  # type: ignore[misc]


def _encoded_prompts(
    checkpoint: Checkpoint, calibration: Calibration, device: torch.device, max_tokens: int
) -> list[tuple[Tensor, Tensor | None]]:
    encoder = checkpoint.load("text_encoder")
    if encoder.dtype == torch.float16:
        encoder = encoder.float()  # T5 overflows in float16
    pipeline = _pipeline(checkpoint, text_encoder=encoder.to(device))
    with torch.no_grad():
        return [
            pipeline.encode_prompt(
                prompt,
                calibration.request.negative_prompt,
                do_classifier_free_guidance=calibration.request.guidance_scale > 1,
                max_sequence_length=max_tokens,
                device=device,
            )
            for prompt in calibration.prompts
        ]


def _pipeline(checkpoint: Checkpoint, *, text_encoder: Any = None, transformer: Any = None) -> Any:
    """Without a VAE, which the latents do not need."""
    scheduler = checkpoint.model_class("scheduler").from_config(checkpoint.scheduler)
    pipeline = WanPipeline(checkpoint.tokenizer(), text_encoder, None, scheduler, transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
