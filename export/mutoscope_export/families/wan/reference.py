"""Whole denoising runs of a checkpoint by the pipelines of Diffusers, one transformer in memory at a time.

Knows how the pipelines are put together and called. Knows nothing of what is watched while they run.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
from mutoscope.bundle.conditionings import TextConditioning
from mutoscope.pictures import for_clip
from mutoscope.values.guidance import is_guided
from torch import Tensor, nn
from transformers import BatchFeature
from transformers.utils import logging

from ...checkpoint.checkpoint import Checkpoint
from ..family import Calibration, Call, Description, Recording, Reference
from .description import scheduler_of
from .experts import ROLES
from .followed import FROM_PICTURES, FROM_TEXT, followed, pipeline_of
from .graph_sources import IMAGE_ENCODER, expands_timesteps, kind_of

_BOUNDARY = "boundary_ratio"
_TEXT_TOKENS = 512  # that Diffusers takes for granted where its transformer is also given tokens of pictures


def reference(checkpoint: Checkpoint, described: Description, calibration: Calibration) -> Iterator[Reference]:
    """Each transformer in float32, on the GPU where torch has one; there the runs multiply in bfloat16.

    What encoders make of prompts and pictures is computed before, so that no other network is in memory beside it.

    Raises:
        ExportError: the weights cannot be loaded.
        RequestError: a clip of the calibration cannot be read.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setting = _Setting(checkpoint, described, calibration, device)
    runs = [_Run(setting, number, *embeds) for number, embeds in enumerate(_encoded_prompts(setting))]
    components = list(ROLES)[: len(described.experts)]
    elsewhere = {name: _Elsewhere(checkpoint.without_weights(name).config, device) for name in components}
    _encode_pictures(setting, runs, elsewhere)
    recorded = kind_of(checkpoint).recorded
    for component in components:
        network: Any = checkpoint.load(component).float().to(device)
        networks = {**elsewhere, component: network}
        parts = [partial(run.go_on, networks) for run in runs]
        yield Reference(ROLES[component], network, parts, partial(_steps, recorded))
        del network, networks, parts
        gc.collect()  # before the next is loaded


@dataclass(frozen=True)
class _Setting:
    """What all runs have in common."""

    checkpoint: Checkpoint
    described: Description
    calibration: Calibration
    device: torch.device

    def pipeline(self, name: str, **components: Any) -> Any:
        """With these components, and without those that are not named."""
        scheduler = _scheduler(scheduler_of(self.checkpoint), self.calibration.request.flow_shift)
        options = {_BOUNDARY: self.checkpoint.index.get(_BOUNDARY)}
        if name == FROM_PICTURES:
            options["expand_timesteps"] = expands_timesteps(self.checkpoint)
        absent = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
        pipeline = _class_of(name)(scheduler=scheduler, **{**absent, **components}, **options)
        pipeline.set_progress_bar_config(disable=True)
        _, pipeline.vae_scale_factor_temporal = self.described.frames.frames_per_call
        pipeline.vae_scale_factor_spatial = self.described.geometry.vae_scale_factor_spatial
        return pipeline


class _Once:
    """A function that every run calls equally often: it computes in the first, and gives the same again in others."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function: Callable[..., Any] | None = function
        self._given: list[Any] = []

    def __call__(self, *arguments: Any) -> Any:
        self._given.append(self._function(*arguments) if self._function else self._given.pop(0))
        return self._given[-1]

    def forget(self) -> None:
        """Drops the function after the first run, with the network that it belongs to."""
        self._function = None


class _Encoder(nn.Module):
    """In the place of the VAE, which need not be in memory after it saw the pictures of a run."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.config, self.dtype, self.device = vae.config, vae.dtype, vae.device
        self.temperal_downsample = vae.temperal_downsample
        self.encode = _Once(lambda clip: SimpleNamespace(latents=vae.encode(clip).latent_dist.mode()))


@dataclass
class _Run:
    """One video of the reference, which two transformers make in turn; and how far the first came.

    The second time, the first steps are made with nothing, and their result is replaced by what was kept.
    """

    setting: _Setting
    number: int
    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None
    vae: _Encoder | None = None
    encode_image: _Once | None = None  # what the image encoder sees
    kept: tuple[Tensor, Any] | None = None  # latents and scheduler after the last step of the first transformer

    @property
    def kind(self) -> str:
        """The name of the pipeline's class."""
        return pipeline_of(self.setting.checkpoint, self.number)

    def encode(self, vae: nn.Module, networks: Mapping[str, nn.Module], **seeing: Any) -> None:
        """Makes the whole run but for its transformers, and keeps what becomes of its pictures."""
        self.vae = _Encoder(vae)
        pipeline = self.setting.pipeline(self.kind, vae=self.vae, **networks, **seeing)
        if seeing:
            self.encode_image = pipeline.encode_image = _Once(pipeline.encode_image)
        self._make(pipeline)
        for function in (self.vae.encode, self.encode_image):
            if function is not None:
                function.forget()

    def go_on(self, networks: Mapping[str, nn.Module]) -> None:
        """Makes the steps of the transformer that is there; in the place of the other there is an `_Elsewhere`."""
        pipeline = self.setting.pipeline(self.kind, vae=self.vae, **networks)
        if self.encode_image is not None:
            pipeline.encode_image = self.encode_image
        self._make(pipeline, callback_on_step_end=None if len(networks) == 1 else self._at_switch)

    def _make(self, pipeline: Any, **further: Any) -> None:
        setting = self.setting
        autocast: AbstractContextManager[Any] = nullcontext()
        if setting.device.type == "cuda":
            autocast = torch.autocast("cuda", torch.bfloat16)
        request = setting.calibration.request
        with torch.no_grad(), autocast:
            pipeline(
                prompt_embeds=self.prompt_embeds,
                negative_prompt_embeds=self.negative_prompt_embeds,
                height=request.height,
                width=request.width,
                num_frames=request.num_frames,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                guidance_scale_2=setting.described.experts[-1].guidance_scale,
                generator=torch.Generator("cpu").manual_seed(setting.calibration.seed + self.number),
                output_type="latent",
                **followed(setting.checkpoint, setting.calibration, self.number),
                **further,
            )

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
    """In the place of a transformer that is not in memory: pipelines ask it for as much, and call it."""

    def __init__(self, config: Any, device: torch.device) -> None:
        super().__init__()
        self.config, self.dtype, self.device = config, torch.float32, device

    def cache_context(self, name: str, **_: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        return (torch.zeros_like(hidden_states[:, : self.config.out_channels or self.config.in_channels]),)


def _steps(recorded: Callable[[Call], Mapping[str, Tensor]], calls: Sequence[Call]) -> list[Recording]:
    """The steps of a run in which a pipeline calls its transformer once a branch, the positive first.

    `recorded` gives the inputs of the graph that one call decides.
    """
    grouped: list[list[Call]] = []
    for call in calls:
        if not grouped or not torch.equal(grouped[-1][0]["timestep"], call["timestep"]):
            grouped.append([])
        grouped[-1].insert(0, call)
    return [
        Recording(
            {
                **recorded(branches[0]),
                "prompt_embeds": torch.cat([branch["encoder_hidden_states"] for branch in branches]),
            },
            tuple(branches),
        )
        for branches in grouped
    ]


def _encoded_prompts(setting: _Setting) -> list[tuple[Tensor, Tensor | None]]:
    (prompt,) = (each for each in setting.described.conditionings if isinstance(each, TextConditioning))
    checkpoint, calibration = setting.checkpoint, setting.calibration
    encoder: Any = checkpoint.load("text_encoder")
    if encoder.dtype == torch.float16:
        encoder = encoder.float()  # T5 overflows in float16
    pipeline = setting.pipeline(FROM_TEXT, tokenizer=checkpoint.tokenizer(), text_encoder=encoder.to(setting.device))
    with torch.no_grad():
        return [
            pipeline.encode_prompt(
                text,
                calibration.request.negative_prompt,
                do_classifier_free_guidance=is_guided(calibration.request.guidance_scale),
                max_sequence_length=_TEXT_TOKENS if IMAGE_ENCODER in checkpoint.classes else prompt.max_sequence_length,
                device=setting.device,
            )
            for text in calibration.prompts
        ]


def _encode_pictures(setting: _Setting, runs: Sequence[_Run], elsewhere: Mapping[str, nn.Module]) -> None:
    """The VAE and the image encoder, which are small, for all runs that follow pictures or clips."""
    following = [run for run in runs if run.kind != FROM_TEXT]
    if not following:
        return
    checkpoint, seeing = setting.checkpoint, dict[str, Any]()
    vae: Any = checkpoint.load("vae").float().to(setting.device)
    if IMAGE_ENCODER in checkpoint.classes:
        image_encoder = checkpoint.load(IMAGE_ENCODER).float().to(setting.device)
        seeing = {"image_encoder": image_encoder, "image_processor": _for_clip}
    for run in following:
        run.encode(vae, elsewhere, **seeing)


def _for_clip(images: Any, return_tensors: str) -> BatchFeature:
    """In the place of `CLIPImageProcessor`, which computes the same, and whose name differs by version."""
    pictures = images if isinstance(images, list) else [images]
    pixels = np.stack([for_clip(np.asarray(picture)) for picture in pictures])
    return BatchFeature({"pixel_values": torch.from_numpy(pixels)})


def _class_of(pipeline: str) -> Any:
    """A class of Diffusers. Its module may import one of transformers that warns of torchvision, without need."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return getattr(diffusers, pipeline)
    finally:
        logging.set_verbosity(verbosity)


def _scheduler(config: Mapping[str, Any], shift: float | None) -> Any:
    """Of the checkpoint, with the shift that requests get by default."""
    name = config["_class_name"]
    own = {} if shift is None else {"shift" if name.startswith("FlowMatch") else "flow_shift": shift}
    return getattr(diffusers, name).from_config({**config, **own})
