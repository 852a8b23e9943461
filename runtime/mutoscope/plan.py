"""From a request to what will be done: every default resolved, every size computed, every limit checked.

Knows requests, bundles and schedules. Opens no graph and computes no video.
"""

from __future__ import annotations

import math
import operator
import os
import secrets
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from mutoscope_engines.session import Backend

from .bundle import Bundle
from .errors import RequestError
from .families import Family
from .noise import SEED_MAX, SEED_MIN
from .request import RuntimeOptions, VideoRequest
from .schedule import Schedule, ScheduleError, build_schedule
from .text import Tokenizer, Tokens

MAX_STEPS = 1000  # the training timesteps of every model so far
MAX_FPS = 240


@dataclass(frozen=True)
class Plan:
    """What will be done. Nothing in it is optional; `describe` prints it, `to_dict` gives it as plain values."""

    prompt: str  # cleaned
    negative_prompt: str  # cleaned; empty without guidance
    prompt_tokens: int
    max_sequence_length: int  # L
    height: int  # H
    width: int  # W
    num_frames: int  # T
    fps: int
    latents_shape: tuple[int, int, int, int]  # C, F, h, w
    network_tokens: int
    num_inference_steps: int
    scheduler: str
    timesteps: tuple[float, ...]
    guidance_scale: float
    guidance_weights: tuple[float, ...]  # one a branch: (negative, positive), or (1,)
    branches_per_call: int
    seed: int
    backend: str
    precision: str
    threads: int
    family: str
    bundle: str
    bundle_sha256: str
    keep_loaded: bool  # graphs stay in memory between videos
    notes: tuple[str, ...]  # what the caller should know, for a person

    def to_dict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def describe(self) -> str:
        """One line a fact, aligned, for a terminal."""
        facts = {
            name: ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
            if isinstance(value, tuple)
            else str(value)
            for name, value in self.to_dict().items()
            if name != "notes"
        }
        longest = max(map(len, facts))
        return "\n".join(f"{name:<{longest}}  {value}" for name, value in facts.items())


@dataclass(frozen=True)
class Job:
    """A plan with the values that are too large to print: what the stages work from."""

    plan: Plan
    tokens: Tokens  # one row a branch
    schedule: Schedule


def make_job(
    request: VideoRequest,
    options: RuntimeOptions,
    bundle: Bundle,
    backend: Backend,
    family: Family,
    tokenizer: Tokenizer,
) -> Job:
    """Resolves a request for a bundle and a backend.

    Raises:
        RequestError: a value that the bundle or the model cannot serve; names the nearest it can.
    """
    manifest, defaults, geometry = bundle.manifest, bundle.manifest.defaults, bundle.manifest.geometry
    notes: list[str] = []

    prompt = _clean(family, "prompt", request.prompt)
    if not prompt:
        raise RequestError('the prompt is empty; say what the video shows, for example "a red circle"')
    guidance_scale = _number(
        "guidance_scale", _either(request.guidance_scale, defaults.guidance_scale), minimum=0.0, maximum=1000.0
    )
    guided = guidance_scale > 1
    negative_prompt = _clean(family, "negative_prompt", _either(request.negative_prompt, defaults.negative_prompt))
    if not guided:
        if request.negative_prompt:
            notes.append(f"the negative prompt is not used: guidance_scale is {guidance_scale:g}, and it works above 1")
        negative_prompt = ""

    height, width = (
        _size(name, _either(value, default), geometry.vae_scale_factor_spatial * patch, geometry.max_patches)
        for name, value, default, patch in (
            ("height", request.height, defaults.height, geometry.patch_size[1]),
            ("width", request.width, defaults.width, geometry.patch_size[2]),
        )
    )
    num_frames = _frames(_either(request.num_frames, defaults.num_frames), bundle)
    latents_shape = (
        geometry.latent_channels,
        family.latent_frames(num_frames, geometry.vae_scale_factor_temporal),
        height // geometry.vae_scale_factor_spatial,
        width // geometry.vae_scale_factor_spatial,
    )

    schedule = _schedule(request, bundle)
    max_sequence_length = _whole(
        "max_sequence_length",
        _either(request.max_sequence_length, manifest.text.max_sequence_length),
        minimum=1,
        maximum=manifest.text.max_sequence_length,
    )
    texts = [negative_prompt, prompt] if guided else [prompt]
    tokens = tokenizer.encode(texts, max_sequence_length)
    demonstration = manifest.demonstration
    if demonstration and not demonstration.understands(prompt):
        notes.append(
            f"this is the built-in demonstration model; it understands: {demonstration.description}. "
            "For anything else export a real model: mutoscope export CHECKPOINT BUNDLE"
        )

    plan = Plan(
        prompt=prompt,
        negative_prompt=negative_prompt,
        prompt_tokens=tokens.counts[-1],
        max_sequence_length=max_sequence_length,
        height=height,
        width=width,
        num_frames=num_frames,
        fps=_whole("fps", _either(request.fps, defaults.fps), minimum=1, maximum=MAX_FPS),
        latents_shape=latents_shape,
        network_tokens=math.prod(latents_shape[1:]) // math.prod(geometry.patch_size),
        num_inference_steps=len(schedule.steps),
        scheduler=schedule.name,
        timesteps=tuple(step.timestep for step in schedule.steps),
        guidance_scale=guidance_scale,
        guidance_weights=(1 - guidance_scale, guidance_scale) if guided else (1.0,),
        branches_per_call=_branches_per_call(options, len(texts)),
        seed=_whole("seed", _either(request.seed, secrets.randbelow(2**32)), minimum=SEED_MIN, maximum=SEED_MAX),
        backend=backend.version(),
        precision=_precision(options, bundle, backend),
        threads=_whole("threads", _either(options.threads, len(os.sched_getaffinity(0))), minimum=1, maximum=1024),
        family=manifest.family,
        bundle=str(bundle.root),
        bundle_sha256=bundle.sha256,
        keep_loaded=_fits_for_good(bundle),
        notes=tuple(notes),
    )
    return Job(plan, tokens, schedule)


def _either(given: Any, default: Any) -> Any:
    return default if given is None else given


def _clean(family: Family, name: str, text: Any) -> str:
    if not isinstance(text, str):
        raise RequestError(f"{name} must be one string; got {type(text).__name__}. Call once for each video")
    return family.clean_prompt(text)


def _whole(name: str, value: Any, *, minimum: int, maximum: int) -> int:
    try:
        whole = operator.index(value) if not isinstance(value, bool) else None
    except TypeError:
        whole = None
    if whole is None or not minimum <= whole <= maximum:
        raise RequestError(f"{name} must be a whole number from {minimum} to {maximum}; got {value!r}")
    return whole


def _number(name: str, value: Any, *, minimum: float, maximum: float) -> float:
    # mypy does not see that a Real compares with a float
    if not isinstance(value, Real) or isinstance(value, bool) or not minimum <= value <= maximum:  # type: ignore[operator]
        raise RequestError(f"{name} must be a number from {minimum:g} to {maximum:g}; got {value!r}")
    return float(value)


def _nearest(value: int, step: int, offset: int = 0) -> str:
    """The nearest allowed values, `offset` plus multiples of `step`, below and above."""
    below = offset + max(0, (value - offset) // step) * step
    return ", ".join(str(choice) for choice in (below, below + step) if choice > 0)


def _size(name: str, value: Any, multiple: int, max_patches: int) -> int:
    size = _whole(name, value, minimum=1, maximum=multiple * max_patches)
    if size % multiple:
        raise RequestError(f"{name} must be a multiple of {multiple}; got {size}; nearest: {_nearest(size, multiple)}")
    return size


def _frames(value: Any, bundle: Bundle) -> int:
    geometry = bundle.manifest.geometry
    step = geometry.vae_scale_factor_temporal * geometry.patch_size[0]
    first = geometry.vae_scale_factor_temporal * (geometry.patch_size[0] - 1) + 1
    frames = _whole("num_frames", value, minimum=1, maximum=first + step * (geometry.max_patches - 1))
    if frames < first or (frames - first) % step:
        raise RequestError(
            f"num_frames must be {first} more than a multiple of {step}; got {frames}; "
            f"nearest: {_nearest(frames, step, first)}"
        )
    return frames


def _schedule(request: VideoRequest, bundle: Bundle) -> Schedule:
    defaults = bundle.manifest.defaults
    config = dict(bundle.manifest.scheduler)
    if request.flow_shift is not None:
        shift = _number("flow_shift", request.flow_shift, minimum=1e-3, maximum=1000.0)
        config |= {"flow_shift": shift, "shift": shift}
    steps = _whole(
        "num_inference_steps",
        _either(request.num_inference_steps, defaults.num_inference_steps),
        minimum=1,
        maximum=MAX_STEPS,
    )
    try:
        return build_schedule(str(_either(request.scheduler, defaults.scheduler)), config, steps)
    except ScheduleError as error:
        raise RequestError(str(error)) from error


def _branches_per_call(options: RuntimeOptions, branches: int) -> int:
    wanted = _whole("branches_per_call", _either(options.branches_per_call, 2), minimum=1, maximum=2)
    return min(wanted, branches)


def _precision(options: RuntimeOptions, bundle: Bundle, backend: Backend) -> str:
    there = bundle.manifest.precisions("denoiser")
    if options.precision is not None:
        if options.precision not in there:
            raise RequestError(f"precision must be one of the bundle's: {', '.join(there)}; got {options.precision!r}")
        return options.precision
    usable = [precision for precision in there if backend.supports(precision)]
    if not usable:
        raise RequestError(f"{backend.name} runs none of the bundle's precisions: {', '.join(there)}")
    return usable[0]


def _fits_for_good(bundle: Bundle) -> bool:
    """Whether all graphs together take less than a quarter of the machine's memory."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sum(record.size for record in bundle.manifest.files.values()) < physical / 4
