"""From a request to what will be done: every default resolved, every limit checked, one record after the other.

Knows requests, bundles and schedules. Opens no graph and computes no video.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..bundle.bundle import Bundle
from ..bundle.manifest import MAX_STEPS, Manifest
from ..clips import Clip, read_clip_or_picture
from ..conditions.base import Condition, Settled, VideoSize
from ..errors import RequestError
from ..pictures import Picture, read_picture, read_pictures, sized_for
from ..request import FILES, PICTURES, REFERENCES, VideoRequest
from ..solvers.noise import SEED_MAX, SEED_MIN
from ..solvers.options import MAX_SHIFT, MIN_SHIFT, ScheduleError, flow_shift_of, shifted
from ..solvers.solvers import Schedule, Step, build_schedule
from ..solvers.step_cache import cached
from ..values import checks
from ..values.frame_rates import parse_frame_rate
from ..values.guidance import MAX_SCALE, guidance_weights, is_guided
from .execution import Execution, planned_memory
from .footprints import Sizes
from .given_clips import bytes_of_clips, skipped_steps, with_clips_opened
from .going_on import Before, going_on, notes_on, read_before
from .loras import notes_on_loras, settle_loras
from .plan import ConditionsPlan, GeometryPlan, GuidancePlan, Job, PlacementPlan, Plan, SchedulePlan

_VACE = "export a model that takes one, such as Wan 2.1 VACE"
INSTEAD = {  # where the model takes none
    "image": "export a model that takes one, such as Wan 2.2 TI2V-5B or I2V-A14B",
    "last_image": "export a model that takes one, such as Wan 2.2 I2V-A14B or Wan 2.1 FLF2V-14B",
    **dict.fromkeys(("mask", REFERENCES, "conditioning_scale"), _VACE),
}
_READ: Mapping[str, Callable[..., Any]] = {  # how the files of a request are read
    **dict.fromkeys(PICTURES, read_picture),
    "mask": read_clip_or_picture,
    REFERENCES: read_pictures,
}


def make_job(request: VideoRequest, execution: Execution, bundle: Bundle, conditions: Sequence[Condition]) -> Job:
    """Resolves a request for a bundle.

    Raises:
        RequestError: a value that the bundle or the model cannot serve; names the nearest it can.
        BackendUnavailableError: there is no engine for its sizes.
    """
    manifest = bundle.manifest
    request = with_pictures_read(request, manifest)
    if before := read_before(request, manifest):
        request = going_on(request, before, manifest)
    request = with_clips_opened(request, manifest)
    guidance = plan_guidance(request, manifest)
    geometry = plan_geometry(request, manifest)
    clip_bytes = bytes_of_clips(request, geometry, execution.host_limit_bytes)
    settled = settle_conditions(request, guidance, geometry, manifest, conditions)
    if before:
        geometry, settled = joined(geometry, settled, before)
    schedule = settle_schedule(request, guidance, manifest)
    loras = settle_loras(request, manifest, execution.main.precision)
    lengths = {**settled.plan.lengths, **loras.lengths}
    branches, rows = len(guidance.weights), schedule.plan.state_rows
    changed = {lora.role for lora in loras.plan}
    encoders, unguided = settled.plan.encoders, guidance.unguided
    sizes = Sizes(branches, lengths, geometry.latents_shape, rows, unguided, encoders, changed, clip_bytes)
    plan = Plan(
        conditions=replace(settled.plan, lengths=lengths),
        geometry=geometry,
        schedule=schedule.plan,
        guidance=guidance,
        loras=loras.plan,
        seed=checks.whole(
            "seed", checks.either(request.seed, secrets.randbelow(2**32)), minimum=SEED_MIN, maximum=SEED_MAX
        ),
        placements=plan_placements(execution, manifest),
        memory=planned_memory(execution, bundle, sizes, geometry.num_frames),
        family=manifest.family,
        bundle=str(bundle.root),
        bundle_sha256=bundle.sha256,
        notes=(
            *execution.notes,
            *settled.notes,
            *_notes(request, guidance, geometry, before, manifest),
            *notes_on_loras(loras, schedule.plan.calls),
        ),
    )
    followed = tuple(zip(conditions, settled.settled, strict=True))
    return Job(plan, followed, schedule.schedule, before, loras=loras)


def with_pictures_read(request: VideoRequest, manifest: Manifest) -> VideoRequest:
    """The request with the pictures that the model takes, read once for all that is planned with them.

    Clips are opened.

    Raises:
        RequestError: one cannot be read, or it was in vain: a size is none of the model's, or there are more references
            than it takes.
    """
    _refuse_sizes(request, manifest)
    given = {name: getattr(request, name) for name in _READ if name in manifest.followed}
    read: dict[str, Any] = {
        name: _READ[name](source, name=name) for name, source in given.items() if source is not None
    }
    return replace(request, **read)


def _refuse_sizes(request: VideoRequest, manifest: Manifest) -> None:
    """Those that can be told before any file is read: no file makes them right."""
    for name, allowed in manifest.sizes.items():
        if (given := getattr(request, name)) is not None:
            checks.size(name, given, allowed)
    least = manifest.defaults.num_frames if request.video is None else manifest.frames.counts[0]
    if isinstance(request.reference_images, (list, tuple)):
        _latent_frames(request, checks.either(request.num_frames, least), manifest)


def plan_guidance(request: VideoRequest, manifest: Manifest) -> GuidancePlan:
    """As in Diffusers, the first expert's scale is that of a later one without its own, and decides about guidance.

    Raises:
        RequestError: a scale is out of range, or there is no expert for it.
    """
    first, *later = manifest.experts
    if request.guidance_scale_2 is not None and not later:
        raise RequestError(
            f"this model has one denoiser, and guidance_scale_2 is for a second; got {request.guidance_scale_2!r}. "
            "Leave it out; guidance_scale is for the one"
        )
    own = {each.role: checks.either(each.guidance_scale, manifest.defaults.guidance_scale) for each in manifest.experts}
    given = checks.either(request.guidance_scale, own[first.role])
    scale = checks.real("guidance_scale", given, minimum=0, maximum=MAX_SCALE)
    scales = {first.role: scale}
    for each in later:
        given = checks.either(request.guidance_scale_2, checks.either(request.guidance_scale, own[each.role]))
        second = checks.real("guidance_scale_2", given, minimum=0, maximum=MAX_SCALE)
        scales[each.role] = second if is_guided(scale) else scale
    return GuidancePlan(scale, guidance_weights(scale), scales)


@dataclass(frozen=True, eq=False)
class SettledConditions:
    """What the video follows, ready to be encoded, and what the caller should know of it."""

    plan: ConditionsPlan
    settled: tuple[Settled, ...]
    notes: tuple[str, ...]


def settle_conditions(
    request: VideoRequest,
    guidance: GuidancePlan,
    geometry: GeometryPlan,
    manifest: Manifest,
    conditions: Sequence[Condition],
) -> SettledConditions:
    """
    Raises:
        RequestError: a condition is missing, or none that the model can take.
    """
    for name in {"prompt", "negative_prompt"} - set(manifest.followed):
        if given := getattr(request, name):
            raise RequestError(f"this model takes no {name}; got {given[:60]!r}. Leave it out")
    for name in INSTEAD:
        if name not in manifest.followed and getattr(request, name) is not None:
            raise RequestError(
                f"{name} is not a parameter of this model, which takes: {', '.join(manifest.followed)}. Leave it out; "
                f"{INSTEAD[name]}"
            )
    guided = is_guided(guidance.scale)
    symbols = dict(zip("Fhw", geometry.latents_shape[1:], strict=True))
    size = VideoSize(geometry.height, geometry.width, geometry.num_frames, symbols)
    settled = tuple(each.settle(request, manifest.defaults, guided=guided, size=size) for each in conditions)
    plan = ConditionsPlan(
        facts={name: value for each in settled for name, value in each.facts.items()},
        lengths={symbol: size for each in settled for symbol, size in each.symbols.items()},
        encoders=tuple(dict.fromkeys(role for each in settled for role in each.roles)),
    )
    notes = list(dict.fromkeys(note for each in settled for note in each.notes))
    demonstration = manifest.demonstration
    if demonstration and not demonstration.understands(plan.prompt):
        notes.append(
            f"this is the built-in demonstration model; it understands: {demonstration.description}. "
            "For anything else export a real model: mutoscope export CHECKPOINT BUNDLE"
        )
    return SettledConditions(plan, settled, tuple(notes))


def joined(
    geometry: GeometryPlan, settled: SettledConditions, before: Before
) -> tuple[GeometryPlan, SettledConditions]:
    """The same, where the picture that the new frames begin with is the last frame of a clip, and the video all of it.

    Raises:
        RequestError: no frame would be new.
    """
    if geometry.num_frames == 1:
        raise RequestError("with num_frames=1 nothing is added, as the first frame is the last of extend; raise it")
    facts = {name: value for name, value in settled.plan.facts.items() if name != "image"} | {"extend": before.identity}
    named = replace(settled, plan=replace(settled.plan, facts=facts))
    return replace(geometry, frames_before=before.num_frames), named


def plan_geometry(request: VideoRequest, manifest: Manifest) -> GeometryPlan:
    """
    Raises:
        RequestError: a size or frame rate that the model cannot make; names the nearest that it can.
    """
    defaults, geometry = manifest.defaults, manifest.geometry
    left_open = size_of_what_is_given(request, manifest)
    height, width, num_frames = (
        checks.size(name, checks.either(getattr(request, name), left_open.get(name, getattr(defaults, name))), allowed)
        for name, allowed in manifest.sizes.items()
    )
    latents_shape = (
        geometry.latent_channels,
        _latent_frames(request, num_frames, manifest),
        height // geometry.vae_scale_factor_spatial,
        width // geometry.vae_scale_factor_spatial,
    )
    return GeometryPlan(
        height=height,
        width=width,
        num_frames=num_frames,
        frames_before=0,
        fps=checks.frame_rate("fps", checks.either(request.fps, parse_frame_rate(defaults.fps))),
        latents_shape=latents_shape,
        network_tokens=math.prod(latents_shape[1:]) // math.prod(geometry.patch_size),
    )


def size_of_what_is_given(request: VideoRequest, manifest: Manifest) -> dict[str, int]:
    """Height and width with the aspect of the request's picture or clip, if it was read and neither is given."""
    given = [getattr(request, name) for name in FILES]
    shapes = [each.pixels.shape[:2] for each in given if isinstance(each, Picture)]
    shapes += [(each.head.height, each.head.width) for each in given if isinstance(each, Clip)]
    if not shapes or request.height is not None or request.width is not None:
        return {}
    rows, columns = shapes[0]
    budget = manifest.defaults.height * manifest.defaults.width
    return dict(zip(("height", "width"), sized_for(rows, columns, budget, manifest.sizes), strict=True))


def _latent_frames(request: VideoRequest, num_frames: int, manifest: Manifest) -> int:
    """F: those of the video, and one for each reference picture, which the denoiser has before them."""
    count = manifest.frames.latent_frames(num_frames)
    if REFERENCES not in manifest.followed or not request.reference_images:
        return count
    references, (_, most) = len(request.reference_images), manifest.symbol_ranges["F"]
    count += references
    if count > most:
        raise RequestError(
            f"reference_images has {references} pictures, each of which takes the place of a latent frame; with a "
            f"video of {num_frames} frames these are {count}, and this model can take {most}. Give fewer, or lower "
            "num_frames"
        )
    return count


@dataclass(frozen=True, eq=False)
class SettledSchedule:
    """The steps of a video with their matrices."""

    plan: SchedulePlan
    schedule: Schedule


def settle_schedule(request: VideoRequest, guidance: GuidancePlan, manifest: Manifest) -> SettledSchedule:
    """
    Raises:
        RequestError: there is no such solver, or it cannot be given these steps and levels.
    """
    defaults, config = manifest.defaults, manifest.default_scheduler
    if request.flow_shift is not None:
        config = shifted(config, checks.real("flow_shift", request.flow_shift, minimum=MIN_SHIFT, maximum=MAX_SHIFT))
    sigmas, count = defaults.sigmas or (), defaults.num_inference_steps
    if request.sigmas is not None:
        sigmas = checks.numbers("sigmas", request.sigmas)
        count = len(sigmas) or count
    steps = checks.whole(
        "num_inference_steps", checks.either(request.num_inference_steps, count), minimum=1, maximum=MAX_STEPS
    )
    cache_interval = checks.whole("cache_interval", request.cache_interval, minimum=1, maximum=MAX_STEPS)
    name = str(checks.either(request.scheduler, defaults.scheduler))
    skipped = skipped_steps(request.strength, steps)
    try:
        built = build_schedule(name, config, steps, sigmas or None, skipped=skipped)
        whole = with_experts(built, guidance, manifest)
        schedule = cached(whole, cache_interval)
    except ScheduleError as error:
        raise RequestError(str(error)) from error
    plan = SchedulePlan(
        scheduler=schedule.name,
        num_inference_steps=steps,
        cache_interval=cache_interval,
        flow_shift=flow_shift_of(name, config),
        sigmas=sigmas,
        timesteps=tuple(step.timestep for step in schedule.steps),
        state_rows=schedule.state_rows,
        calls=Counter(step.role for step in schedule.steps),
        first_steps=whole.first_steps,
    )
    return SettledSchedule(plan, schedule)


def with_experts(schedule: Schedule, guidance: GuidancePlan, manifest: Manifest) -> Schedule:
    """The schedule whose steps say which denoiser is called, and what each guidance branch counts in it.

    Timestep and boundary are compared in float32, as the network is given the one and as torch compares both.
    """

    def directed(step: Step) -> Step:
        expert = next(each for each in manifest.experts if np.float32(step.timestep) >= np.float32(each.above))
        return replace(step, role=expert.role, guidance_weights=guidance.weights_of(expert.role))

    return replace(schedule, steps=tuple(map(directed, schedule.steps)))


def plan_placements(execution: Execution, manifest: Manifest) -> PlacementPlan:
    """What runs the graphs of every video of a pipeline."""
    stages, settings = {}, {}
    for stage, where in execution.placements.items():
        if roles := manifest.roles_of(stage):
            precisions = dict.fromkeys(manifest.graphs_of(role, where.precision)[0].precision for role in roles)
            stages[stage] = f"{' and '.join(precisions)} by {where.backend.version()}"
        if found := where.backend.settings(execution.session):
            settings[where.backend.name] = found
    return PlacementPlan(
        backend=execution.main.backend.version(),
        precision=execution.main.precision,
        stages=stages,
        threads=execution.session.threads or 1,
        settings=settings,
    )


def _notes(
    request: VideoRequest, guidance: GuidancePlan, geometry: GeometryPlan, before: Before | None, manifest: Manifest
) -> Iterator[str]:
    """What is otherwise than a caller may think who knows the checkpoint, or the request."""
    shift, name = manifest.defaults.flow_shift, manifest.defaults.scheduler
    if request.flow_shift is None and shift not in (None, own := flow_shift_of(name, manifest.scheduler)):
        yield f"flow_shift is {shift:g}, as the authors of the model use it; the checkpoint's scheduler says {own:g}"
    if request.guidance_scale_2 not in (None, *guidance.scales.values()):
        yield "guidance_scale_2 is not used: guidance_scale turns guidance off"
    if before:
        yield from notes_on(before, (geometry.height, geometry.width), geometry.fps, manifest)
