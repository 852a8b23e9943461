"""From a request to what will be done: every default resolved, every size computed, every limit checked.

Knows requests, bundles and schedules. Opens no graph and computes no video.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from ..bundle.bundle import Bundle
from ..bundle.manifest import MAX_STEPS, TILED, Manifest
from ..conditions.text import Tokenizer, Tokens
from ..errors import BundleError, RequestError
from ..families import Family
from ..request import VideoRequest
from ..solvers.noise import SEED_MAX, SEED_MIN
from ..solvers.schedule import Schedule, ScheduleError, build_schedule, flow_shift_of
from ..solvers.step_cache import cached
from ..values import checks
from ..values.byte_sizes import format_bytes
from ..values.frame_rates import plain_frame_rate
from .execution import Execution, planned_memory
from .footprints import GRAPHS, RUN_ONCE, Sizes, stage_of
from .tiles import num_tiles


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
    fps: Fraction
    latents_shape: tuple[int, int, int, int]  # C, F, h, w
    network_tokens: int
    state_rows: int  # K
    num_inference_steps: int
    cache_interval: int
    scheduler: str
    flow_shift: float
    sigmas: tuple[float, ...]  # before the shift, one a step; none where they are evenly spaced
    timesteps: tuple[float, ...]  # at which the network is called
    guidance_scale: float
    guidance_weights: tuple[float, ...]  # one a branch: (negative, positive), or (1,)
    branches_per_call: int
    decoder_window: tuple[int, int]  # h, w of the features that are decoded at once
    decoder_tiles: int  # 1 where that is all of them
    seed: int
    backend: str  # of the denoiser
    precision: str  # of the denoiser
    stages: dict[str, str]  # what runs each: precision of its graphs, and backend
    threads: int
    family: str
    bundle: str
    bundle_sha256: str
    settings: dict[str, str]  # of the backends' libraries
    memory_limit_bytes: int  # of the device, for graphs
    memory_peak_bytes: int  # at least, where the activations of a graph are not known
    memory: dict[str, dict[str, int | str | bool]]  # by stage: the way it runs, and what that takes
    keep_loaded: bool  # graphs stay in memory between videos
    notes: tuple[str, ...]  # what the caller should know, for a person

    @property
    def sizes(self) -> Sizes:
        return Sizes(len(self.guidance_weights), self.max_sequence_length, self.latents_shape, self.state_rows)

    def streamed_bytes(self, role: str) -> int:
        """Of a graph's weights, as many stay where they come from, and are read there while it runs."""
        return int(self.memory[stage_of(role)]["streamed_bytes"])

    def runs_once(self, role: str) -> bool:
        """Whether a graph runs once before it is closed."""
        again = role in TILED and self.decoder_tiles > 1
        return role in RUN_ONCE and not self.keep_loaded and not again

    def to_dict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"fps": plain_frame_rate(self.fps)}

    def describe(self) -> str:
        """One line a fact, aligned, for a terminal."""
        facts = {name: _readable(name, value) for name, value in self.to_dict().items() if name != "notes"}
        if not all(stage["activations_known"] for stage in self.memory.values()):
            facts["memory_peak_bytes"] = f"at least {facts['memory_peak_bytes']}"
        facts["sigmas"] = facts["sigmas"] or "evenly spaced"
        longest = max(map(len, facts))
        return "\n".join(f"{name:<{longest}}  {value}" for name, value in facts.items())


def _readable(name: str, value: Any) -> str:
    if name == "memory":
        return "; ".join(f"{stage} {_memory(facts)}" for stage, facts in value.items())
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "the library's own"
    if isinstance(value, tuple):
        return ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    return format_bytes(value) if name.endswith("_bytes") else str(value)


def _memory(facts: dict[str, Any]) -> str:
    sizes = {name: format_bytes(size) for name, size in facts.items() if name.endswith("_bytes")}
    parts = [f"weights {sizes['weight_bytes']}", f"inputs and outputs {sizes['buffer_bytes']}"]
    if facts["streamed_bytes"]:
        parts.append(f"streamed {sizes['streamed_bytes']}")
    parts.append(f"activations {sizes['activation_bytes'] if facts['activations_known'] else 'not known'}")
    if facts["host_bytes"]:
        parts.append(f"features and frames in host memory {sizes['host_bytes']}")
    bound = "" if facts["activations_known"] else "at least "
    return f"{facts['way']}: {bound}{sizes['peak_bytes']} ({', '.join(parts)})"


@dataclass(frozen=True)
class Job:
    """A plan with the values that are too large to print: what the stages work from."""

    plan: Plan
    tokens: Tokens  # one row a branch
    schedule: Schedule


def refuse_impossible_defaults(manifest: Manifest, family: Family) -> None:
    """A request that says nothing but its prompt must be possible.

    Raises:
        BundleError: the bundle's default frames or scheduler are none that its model can serve.
    """
    defaults, counts = manifest.defaults, family.frame_counts(manifest.geometry)
    remedy = "Export the bundle again"
    if defaults.num_frames not in counts:
        allowed = f"{counts[0]} to {counts[-1]} in steps of {counts.step}"
        raise BundleError(f"defaults.num_frames is {defaults.num_frames}; its networks take {allowed}. {remedy}")
    try:
        build_schedule(defaults.scheduler, manifest.scheduler, defaults.num_inference_steps, defaults.sigmas)
    except ScheduleError as error:
        raise BundleError(f"the bundle's defaults give no schedule: {error}. {remedy}") from error


def make_job(request: VideoRequest, execution: Execution, bundle: Bundle, family: Family, tokenizer: Tokenizer) -> Job:
    """Resolves a request for a bundle.

    Raises:
        RequestError: a value that the bundle or the model cannot serve; names the nearest it can.
    """
    manifest, defaults, geometry = bundle.manifest, bundle.manifest.defaults, bundle.manifest.geometry
    notes = list(execution.notes)

    prompt = family.clean_prompt(checks.text("prompt", request.prompt))
    if not prompt:
        raise RequestError('the prompt is empty; say what the video shows, for example "a red circle"')
    guidance_scale = checks.real(
        "guidance_scale", _either(request.guidance_scale, defaults.guidance_scale), minimum=0.0, maximum=1000.0
    )
    guided = guidance_scale > 1
    negative_prompt = family.clean_prompt(
        checks.text("negative_prompt", _either(request.negative_prompt, defaults.negative_prompt))
    )
    if not guided:
        if request.negative_prompt:
            notes.append(f"the negative prompt is not used: guidance_scale is {guidance_scale:g}, and it works above 1")
        negative_prompt = ""

    height, width = (
        checks.size(name, _either(value, default), multiple, geometry.max_patches)
        for name, value, default, multiple in zip(
            ("height", "width"),
            (request.height, request.width),
            (defaults.height, defaults.width),
            geometry.size_multiples,
            strict=True,
        )
    )
    num_frames = checks.frames(
        "num_frames", _either(request.num_frames, defaults.num_frames), family.frame_counts(geometry)
    )
    latents_shape = (
        geometry.latent_channels,
        family.latent_frames(num_frames, geometry.vae_scale_factor_temporal),
        height // geometry.vae_scale_factor_spatial,
        width // geometry.vae_scale_factor_spatial,
    )

    solver, flow_shift, sigmas = _solver(request, bundle)
    cache_interval = checks.whole("cache_interval", request.cache_interval, minimum=1, maximum=MAX_STEPS)
    schedule = _cached(solver, cache_interval)
    checks.fits_in_memory(4 * schedule.state_rows * math.prod(latents_shape), num_frames * height * width * 3)
    max_sequence_length = checks.whole(
        "max_sequence_length",
        _either(request.max_sequence_length, manifest.text.max_sequence_length),
        minimum=1,
        maximum=manifest.text.max_sequence_length,
    )
    texts = {"negative_prompt": negative_prompt, "prompt": prompt} if guided else {"prompt": prompt}
    tokens = tokenizer.encode(texts, max_sequence_length)
    sizes = Sizes(len(texts), max_sequence_length, latents_shape, schedule.state_rows)
    memory = planned_memory(execution, bundle, sizes, family, num_frames)
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
        fps=checks.frame_rate("fps", _either(request.fps, defaults.fps)),
        latents_shape=latents_shape,
        network_tokens=math.prod(latents_shape[1:]) // math.prod(geometry.patch_size),
        state_rows=schedule.state_rows,
        num_inference_steps=len(solver.steps),
        cache_interval=cache_interval,
        scheduler=schedule.name,
        flow_shift=flow_shift,
        sigmas=sigmas,
        timesteps=tuple(step.timestep for step in schedule.steps),
        guidance_scale=guidance_scale,
        guidance_weights=(1 - guidance_scale, guidance_scale) if guided else (1.0,),
        branches_per_call=memory.ways["denoiser"].branches_per_call,
        decoder_window=memory.ways["vae_decoder"].window,
        decoder_tiles=num_tiles(sizes.picture, memory.ways["vae_decoder"].window, geometry.vae_decoder_halo),
        seed=checks.whole("seed", _either(request.seed, secrets.randbelow(2**32)), minimum=SEED_MIN, maximum=SEED_MAX),
        backend=execution.main.backend.version(),
        precision=execution.main.precision,
        stages={
            stage: f"{manifest.graphs_of(GRAPHS[stage][-1], where.precision)[0].precision} by {where.backend.version()}"
            for stage, where in execution.placements.items()
        },
        threads=execution.session.threads or 1,
        family=manifest.family,
        bundle=str(bundle.root),
        bundle_sha256=bundle.sha256,
        settings={
            name: value
            for where in execution.placements.values()
            for name, value in where.backend.settings(execution.session).items()
        },
        memory_limit_bytes=memory.limit_bytes,
        memory_peak_bytes=memory.peak_bytes,
        memory={
            name: {
                "way": way.name,
                "weight_bytes": way.weight_bytes,
                "streamed_bytes": way.streamed_bytes,
                "buffer_bytes": way.buffer_bytes,
                "activation_bytes": way.activation_bytes,
                "host_bytes": way.host_bytes,
                "activations_known": way.activations_known,
                "peak_bytes": way.peak_bytes,
            }
            for name, way in memory.ways.items()
        },
        keep_loaded=memory.keep_loaded,
        notes=tuple(notes),
    )
    return Job(plan, tokens, schedule)


def _either(given: Any, default: Any) -> Any:
    return default if given is None else given


def _solver(request: VideoRequest, bundle: Bundle) -> tuple[Schedule, float, tuple[float, ...]]:
    """The schedule with all its steps, the shift of its noise levels, and these before it, if they are not even."""
    defaults = bundle.manifest.defaults
    config = dict(bundle.manifest.scheduler)
    if request.flow_shift is not None:
        shift = checks.real("flow_shift", request.flow_shift, minimum=1e-3, maximum=1000.0)
        config |= {"flow_shift": shift, "shift": shift}
    sigmas, count = defaults.sigmas or (), defaults.num_inference_steps
    if request.sigmas is not None:
        sigmas = checks.numbers("sigmas", request.sigmas)
        count = len(sigmas) or count
    steps = checks.whole(
        "num_inference_steps", _either(request.num_inference_steps, count), minimum=1, maximum=MAX_STEPS
    )
    name = str(_either(request.scheduler, defaults.scheduler))
    try:
        return build_schedule(name, config, steps, sigmas or None), flow_shift_of(name, config), sigmas
    except ScheduleError as error:
        raise RequestError(str(error)) from error


def _cached(solver: Schedule, cache_interval: int) -> Schedule:
    """The steps that call the network."""
    try:
        return cached(solver, cache_interval)
    except ScheduleError as error:
        raise RequestError(str(error)) from error
