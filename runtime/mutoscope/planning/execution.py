"""How a pipeline runs its graphs: the backends, and the option of each stage that fits into memory.

Knows options, backends and bundles. Knows nothing of prompts and schedules, and opens no graph.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile

from mutoscope_engines.backends import JOINED_BY, backends_named, choose_backend
from mutoscope_engines.cache.shipped import INDEX
from mutoscope_engines.names import no_such
from mutoscope_engines.session import Backend, SessionOptions
from mutoscope_engines.system.machine import memory_bytes

from ..bundle.bundle import Bundle
from ..bundle.contract import DENOISE, STAGES, stage_of
from ..bundle.manifest import MAX_BRANCHES
from ..errors import BackendUnavailableError, EngineMissingError, RequestError
from ..request import BACKEND_NAMES, RuntimeOptions
from ..values import checks
from ..values.byte_sizes import format_bytes, rounded_up
from .footprints import Placement, Sizes, everywhere, snapshot_of, stages_of, wanted_engine
from .memory_plan import DoesNotFitError, HostMemoryError, MemoryPlan, Stage, least_limit_bytes, plan_memory
from .tiles import tile_window


@dataclass(frozen=True)
class Execution:
    """How a pipeline runs its graphs: `RuntimeOptions` with nothing left open, the same for all its videos."""

    placements: Mapping[str, Placement]  # by stage
    branches_per_call: tuple[int, ...]  # that may be, the fastest first
    memory_limit_bytes: int
    session: SessionOptions
    notes: tuple[str, ...]
    tile: tuple[int, int] | None = None  # the most rows and columns of the features to decode at once
    host_limit_bytes: int = field(default_factory=memory_bytes)  # of this machine's memory, beside a device

    @property
    def main(self) -> Placement:
        """That of the denoiser, by which the memory of all is counted."""
        return self.placements[DENOISE]

    @classmethod
    def choose(cls, options: RuntimeOptions, bundle: Bundle, stream: int | None = None) -> Execution:
        """Resolves options for a bundle on this machine.

        Args:
            stream: the handle of the caller's CUDA stream, if it has one.

        Raises:
            RequestError: a value that cannot be, or a precision that the bundle does not have.
            BackendUnavailableError: no backend can run the bundle here; says for each why not.
        """
        threads = checks.threads("threads", options.threads)
        given = MAX_BRANCHES if options.branches_per_call is None else options.branches_per_call
        branches = checks.whole("branches_per_call", given, minimum=1, maximum=MAX_BRANCHES)
        cuda_graphs = checks.switch("cuda_graphs", options.cuda_graphs)
        session = SessionOptions(threads=threads, stream=stream, cuda_graphs=cuda_graphs)
        named = options.backend
        if not isinstance(named, Backend):
            named = JOINED_BY.join(checks.names("backend", named, BACKEND_NAMES))
        there = bundle.manifest.precisions()
        if options.precision is not None and options.precision not in there:
            raise RequestError(no_such("precision", options.precision, there, of="in the bundle"))
        backend, precision, refusals = choose_backend(
            named, there if options.precision is None else [options.precision], partial(lacking, bundle)
        )
        if options.memory_limit is None:
            limit = backend.memory_bytes(session)
        else:
            limit = checks.byte_count("memory_limit", options.memory_limit)
        notes = tuple(f"not used: {refusal}" for refusal in refusals)
        allowed = tuple(range(branches, 0, -1)) if options.branches_per_call is None else (branches,)
        tile = None if options.tile is None else tile_window(options.tile, bundle.manifest.geometry)
        placements = everywhere(backend, precision) | _elsewhere(named, backend, precision, bundle)
        return cls(placements, allowed, limit, session, notes, tile)


def _elsewhere(names: str | Backend, backend: Backend, precision: str, bundle: Bundle) -> dict[str, Placement]:
    """Stages that run faster by another backend of the CPU: of those only that have no graph in the denoiser's
    precision, and would run in a wider type than it."""
    found: dict[str, Placement] = {}
    if backend.on_device:
        return found
    named = takewhile(lambda each: each.name != backend.name, backends_named(names))
    others = [each for each in named if not each.on_device and each.unavailable_because() is None]
    for stage in STAGES:
        there = [bundle.manifest.precisions(role) for role in bundle.manifest.roles_of(stage)]
        if not there or any(precision in precisions for precisions in there):
            continue
        shared = [each for each in there[0] if all(each in precisions for precisions in there)]
        faster = (
            Placement(other, each)
            for other in others
            for each in sorted(shared, key=lambda each: each != other.preferred_precision)
            if other.supports(each) and not other.is_slower(each)
        )
        if placement := next(faster, None):
            found[stage] = placement
    return found


def lacking(bundle: Bundle, backend: Backend, precision: str) -> str | None:
    """What a backend lacks to run a bundle in this precision, whatever the size; `None` if nothing."""
    if bundle.left_out and not backend.runs_engines:
        return f"{bundle.root} was shipped with engines and without graphs; get the whole bundle to run it here"
    try:
        now = backend.snapshot()
        for role in bundle.manifest.roles:
            for graph in bundle.manifest.graphs_of(role, precision):
                now.figures(bundle.path(graph.file), wanted_engine(bundle, graph, None))
    except EngineMissingError as error:
        if bundle.engines is None and (bundle.engines_folder / INDEX).exists():
            return (
                f"{error}. The bundle has engines of its own, which are executable code: they are loaded only with "
                "engines_sha256, the SHA-256 of their index as you have it from whoever you trust for them"
            )
        return str(error)
    except BackendUnavailableError as error:
        return str(error)
    return None


def planned_memory(execution: Execution, bundle: Bundle, sizes: Sizes, num_frames: int) -> MemoryPlan:
    """How each stage of a video of these sizes runs.

    Raises:
        RequestError: it fits with no option; says what would.
        BackendUnavailableError: there is no engine for these sizes.
    """
    lengths, limit = bundle.manifest.frames, execution.memory_limit_bytes
    branches = tuple(dict.fromkeys(min(count, sizes.branches) for count in execution.branches_per_call))
    now = snapshot_of(execution.placements)
    more = sizes.latents_shape[1] - lengths.latent_frames(num_frames)  # of pictures that are no frame of the video

    def stages(frames: int) -> list[Stage]:
        channels, _, rows, columns = sizes.latents_shape
        shape = (channels, lengths.latent_frames(frames) + more, rows, columns)
        scaled = replace(sizes, latents_shape=shape, clip_bytes=sizes.clip_bytes * frames // num_frames)
        return stages_of(bundle, now, scaled, branches, execution.tile)

    asked = stages(num_frames)
    try:
        return plan_memory(asked, limit, execution.host_limit_bytes)
    except HostMemoryError as error:
        raise RequestError(
            f"{_doing(error.stage)} in tiles needs at least {format_bytes(error.host_bytes)} of host memory for this "
            f"video, and {format_bytes(execution.host_limit_bytes)} is available. "
            "Ask for a smaller height, width or num_frames, or raise memory_limit until it needs no tiles"
        ) from error
    except DoesNotFitError as error:
        counts = [count for count in lengths.counts if count < num_frames]
        fitting = bisect_left(counts, True, key=lambda frames: least_limit_bytes(stages(frames)) > limit)
        shorter = f", or num_frames={counts[fitting - 1]}" if fitting else ""
        raise RequestError(
            f"{_doing(error.stage)} needs at least {format_bytes(error.option.least_bytes)} for this video, and the "
            f"limit is {format_bytes(limit)}. This would fit: "
            f"memory_limit={rounded_up(least_limit_bytes(asked)):_}{shorter}"
        ) from error


def _doing(stage: str) -> str:
    """What a stage does; of several experts or encoders, which one."""
    return STAGES[stage] if stage in STAGES else f"{STAGES[stage_of(stage)]} by the {stage}"
