"""Whole denoising runs of `WanPipeline` on a checkpoint, one component in memory at a time.

Knows how the pipeline is put together and called. Knows nothing of what is watched while it runs.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import WanPipeline
from mutoscope.bundle.conditionings import TextConditioning
from mutoscope.values.guidance import is_guided
from torch import Tensor, nn

from ...checkpoint.checkpoint import Checkpoint
from ..family import Calibration, Call, Description, Recording, Reference
from .description import scheduler_of
from .experts import ROLES

_BOUNDARY = "boundary_ratio"


def reference(checkpoint: Checkpoint, described: Description, calibration: Calibration) -> Iterator[Reference]:
    """Each transformer in float32, on the GPU where torch has one; there the runs multiply in bfloat16.

    Raises:
        ExportError: the weights cannot be loaded.
    """
    (prompt,) = (each for each in described.conditionings if isinstance(each, TextConditioning))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prompts = _encoded_prompts(checkpoint, calibration, device, prompt.max_sequence_length)
    seeds = range(calibration.seed, calibration.seed + len(prompts))
    runs = [_Run(*embeds, seed) for embeds, seed in zip(prompts, seeds, strict=True)]
    components = list(ROLES)[: len(described.experts)]
    for component in components:
        network: Any = checkpoint.load(component).float().to(device)
        networks = {name: network if name == component else _Elsewhere(network.config, device) for name in components}
        pipeline = _pipeline(checkpoint, calibration, **networks)
        _, pipeline.vae_scale_factor_temporal = described.frames.frames_per_call
        pipeline.vae_scale_factor_spatial = described.geometry.vae_scale_factor_spatial
        parts = [partial(each.go_on, pipeline, calibration, described.experts[-1].guidance_scale) for each in runs]
        yield Reference(ROLES[component], network, parts, steps)
        del network, networks, pipeline, parts
        gc.collect()  # before the next is loaded


@dataclass
class _Run:
    """One video of the reference, which two transformers make in turn; and how far the first came.

    The second time, the first steps are made with nothing, and their result is replaced by what was kept.
    """

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None
    seed: int
    kept: tuple[Tensor, Any] | None = None  # latents and scheduler after the last step of the first transformer

    def go_on(self, pipeline: Any, calibration: Calibration, later_scale: float | None) -> None:
        autocast: AbstractContextManager[Any] = nullcontext()
        if self.prompt_embeds.device.type == "cuda":
            autocast = torch.autocast("cuda", torch.bfloat16)
        request, own_scheduler = calibration.request, pipeline.scheduler
        with autocast:
            pipeline(
                prompt_embeds=self.prompt_embeds,
                negative_prompt_embeds=self.negative_prompt_embeds,
                height=request.height,
                width=request.width,
                num_frames=request.num_frames,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(self.seed),
                output_type="latent",
                guidance_scale_2=later_scale,
                callback_on_step_end=None if pipeline.transformer_2 is None else self._at_switch,
            )
        pipeline.scheduler = own_scheduler

    def _at_switch(self, pipeline: Any, index: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        """Stops the run before the first step of the second transformer, or goes on from where it was stopped."""
        boundary = pipeline.config[_BOUNDARY] * pipeline.scheduler.config.num_train_timesteps
        following = pipeline.scheduler.timesteps[index + 1 : index + 2]
        if timestep < boundary or not (following < boundary).any():
            return {}
        if self.kept is None:
            self.kept = values["latents"], deepcopy(pipeline.scheduler)
            pipeline._interrupt = True  # noqa: SLF001 - as the guide of Diffusers stops a run
            return {}
        latents, pipeline.scheduler = self.kept
        return {"latents": latents}


class _Elsewhere(nn.Module):
    """In the place of a transformer that is not in memory: `WanPipeline` asks it for as much, and calls it."""

    def __init__(self, config: Any, device: torch.device) -> None:
        super().__init__()
        self.config, self.dtype, self.device = config, torch.float32, device

    def cache_context(self, name: str, **_: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        return (torch.zeros_like(hidden_states),)


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
    pipeline = _pipeline(checkpoint, calibration, text_encoder=encoder.to(device))
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


def _pipeline(checkpoint: Checkpoint, calibration: Calibration, **networks: Any) -> Any:
    """Without a VAE, which the latents do not need."""
    scheduler = _scheduler(scheduler_of(checkpoint), calibration.request.flow_shift)
    given = {"text_encoder": None, **networks}
    pipeline = WanPipeline(
        tokenizer=checkpoint.tokenizer(), vae=None, scheduler=scheduler, **given,
        boundary_ratio=checkpoint.index.get(_BOUNDARY),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _scheduler(config: Mapping[str, Any], shift: float | None) -> Any:
    """Of the checkpoint, with the shift that requests get by default."""
    name = config["_class_name"]
    own = {} if shift is None else {"shift" if name.startswith("FlowMatch") else "flow_shift": shift}
    return getattr(diffusers, name).from_config({**config, **own})
