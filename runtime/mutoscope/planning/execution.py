"""How a pipeline runs its graphs: the backends, and the way of each stage within the memory that there is.

Knows options, backends and bundles. Knows nothing of prompts and schedules, and opens no graph.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile

from mutoscope_engines.backends import backends_named, choose_backend
from mutoscope_engines.session import Backend, SessionOptions

from ..bundle.bundle import Bundle
from ..bundle.manifest import MAX_BRANCHES, ROLES
from ..errors import BackendUnavailableError, RequestError
from ..families import Family
from ..request import RuntimeOptions
from ..values import checks
from ..values.byte_sizes import format_bytes
from .footprints import GRAPHS, Placement, Sizes, everywhere, stages_of, wanted_engine
from .memory_plan import DoesNotFitError, MemoryPlan, Stage, least_limit_bytes, plan_memory
from .tiles import parse_tile


@dataclass(frozen=True)
class Execution:
    """How a pipeline runs its graphs: `RuntimeOptions` with nothing left open, the same for all its videos."""

    placements: Mapping[str, Placement]  # by stage
    branches_per_call: tuple[int, ...]  # that may be, the fastest first
    memory_limit_bytes: int
    session: SessionOptions
    notes: tuple[str, ...]
    tile: tuple[int, int] | None = None  # the most rows and columns of the features to decode at once

    @property
    def main(self) -> Placement:
        """That of the denoiser, by which the memory of all is counted."""
        return self.placements["denoiser"]

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
        cuda_graphs = checks.choice("cuda_graphs", options.cuda_graphs, ("on", "off")) == "on"
        session = SessionOptions(threads=threads, stream=stream, cuda_graphs=cuda_graphs)
        there = bundle.manifest.precisions("denoiser")
        if options.precision is not None and options.precision not in there:
            raise RequestError(f"precision must be one of the bundle's: {', '.join(there)}; got {options.precision!r}")
        backend, precision, refusals = choose_backend(
            options.backend, there if options.precision is None else [options.precision], partial(lacking, bundle)
        )
        if options.memory_limit is None:
            limit = backend.memory_bytes(session)
        else:
            limit = checks.memory_size("memory_limit", options.memory_limit)
        notes = tuple(f"not used: {refusal}" for refusal in refusals)
        allowed = tuple(range(branches, 0, -1)) if options.branches_per_call is None else (branches,)
        tile = None if options.tile is None else parse_tile(options.tile, bundle.manifest.geometry)
        placements = everywhere(backend, precision) | _elsewhere(options.backend, backend, precision, bundle)
        return cls(placements, allowed, limit, session, notes, tile)


def _elsewhere(names: str, backend: Backend, precision: str, bundle: Bundle) -> dict[str, Placement]:
    """Stages that run faster by another backend of the CPU: of those only that have no graph in the denoiser's
    precision, and would run in a wider type than it."""
    found: dict[str, Placement] = {}
    if backend.on_device:
        return found
    named = takewhile(lambda each: each.name != backend.name, backends_named(names))
    others = [each for each in named if not each.on_device and each.unavailable_because() is None]
    for stage, roles in GRAPHS.items():
        there = [bundle.manifest.precisions(role) for role in roles]
        if any(precision in precisions for precisions in there):
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
    try:
        for role in ROLES:
            for graph in bundle.manifest.graphs_of(role, precision):
                backend.figures(bundle.path(graph.file), wanted_engine(bundle, graph, None))
    except BackendUnavailableError as error:
        return str(error)
    return None


def planned_memory(execution: Execution, bundle: Bundle, sizes: Sizes, family: Family, num_frames: int) -> MemoryPlan:
    """The way of each stage for a video of these sizes.

    Raises:
        RequestError: it fits in no way; says what would.
        BackendUnavailableError: there is no engine for these sizes.
    """
    geometry, limit = bundle.manifest.geometry, execution.memory_limit_bytes
    branches = tuple(dict.fromkeys(min(count, sizes.branches) for count in execution.branches_per_call))

    def stages(frames: int) -> list[Stage]:
        channels, _, rows, columns = sizes.latents_shape
        latent_frames = family.latent_frames(frames, geometry.vae_scale_factor_temporal)
        scaled = replace(sizes, latents_shape=(channels, latent_frames, rows, columns))
        return stages_of(bundle, execution.placements, scaled, branches, execution.tile)

    asked = stages(num_frames)
    try:
        return plan_memory(asked, limit)
    except DoesNotFitError as error:
        counts = [count for count in family.frame_counts(geometry) if count < num_frames]
        fitting = bisect_left(counts, True, key=lambda frames: least_limit_bytes(stages(frames)) > limit)
        shorter = f", or num_frames={counts[fitting - 1]}" if fitting else ""
        raise RequestError(
            f"the {error.stage} takes at least {format_bytes(error.way.least_bytes)} for this video, and "
            f"{format_bytes(limit)} are allowed. What fits: "
            f"--memory-limit {format_bytes(least_limit_bytes(asked), round_up=True).replace(' ', '')}{shorter}"
        ) from error
