"""Whole denoising runs of `WanPipeline` on a checkpoint, one component in memory at a time.

Knows how the pipeline is put together and called. Knows nothing of what is watched while it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import WanPipeline
from mutoscope.bundle.manifest import TextConditioning
from mutoscope.values.guidance import is_guided
from torch import Tensor

from ...checkpoint.checkpoint import Checkpoint
from ..family import Calibration, Call, Description, Recording, Reference
from .description import scheduler_of


def reference(checkpoint: Checkpoint, described: Description, calibration: Calibration) -> Reference:
    """The transformer in float32, on the GPU where torch has one; there the runs multiply in bfloat16.

    Raises:
        ExportError: the weights cannot be loaded.
    """
    (prompt,) = (each for each in described.conditionings if isinstance(each, TextConditioning))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prompts = _encoded_prompts(checkpoint, calibration, device, prompt.max_sequence_length)
    transformer = checkpoint.load("transformer").float().to(device)
    pipeline = _pipeline(checkpoint, transformer=transformer)
    _, pipeline.vae_scale_factor_temporal = described.frames.frames_per_call
    pipeline.vae_scale_factor_spatial = described.geometry.vae_scale_factor_spatial
    request = calibration.request

    def run(index: int) -> None:
        autocast: AbstractContextManager[Any] = nullcontext()
        if device.type == "cuda":
            autocast = torch.autocast("cuda", torch.bfloat16)
        prompt_embeds, negative_prompt_embeds = prompts[index]
        with autocast:
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

    return Reference({"denoiser": transformer}, [partial(run, index) for index in range(len(prompts))], steps)


def steps(calls: Sequence[Call]) -> list[Recording]:
    """The steps of a run in which `WanPipeline` calls its transformer once a branch, the positive first."""
    grouped: list[list[Call]] = []
    for call in calls:
        if not grouped or not torch.equal(grouped[-1][0]["timestep"], call["timestep"]):
            grouped.append([])
        grouped[-1].insert(0, call)
    return [Recording(_inputs(branches), tuple(branches)) for branches in grouped]


def _inputs(branches: Sequence[Call]) -> dict[str, Tensor]:
    """What the graph takes in one call for what the transformer took in several."""
    call = branches[0]
    return {
        "latents": call["hidden_states"][0],
        "timestep": call["timestep"][:1],
        "prompt_embeds": torch.cat([branch["encoder_hidden_states"] for branch in branches]),
    }


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
                do_classifier_free_guidance=is_guided(calibration.request.guidance_scale),
                max_sequence_length=max_tokens,
                device=device,
            )
            for prompt in calibration.prompts
        ]


def _pipeline(checkpoint: Checkpoint, *, text_encoder: Any = None, transformer: Any = None) -> Any:
    """Without a VAE, which the latents do not need."""
    config = scheduler_of(checkpoint)
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    pipeline = WanPipeline(checkpoint.tokenizer(), text_encoder, None, scheduler, transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
