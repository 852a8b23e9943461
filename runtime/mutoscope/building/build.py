"""From a bundle to engines in the cache: which graphs, for which targets, in which precision.

Knows bundles, targets and the cache. Runs no engine and needs no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from mutoscope_engines.cache.engine_cache import EngineCache, Reservation
from mutoscope_engines.cache.identity import EngineIdentity
from mutoscope_engines.cache.record import EngineReport
from mutoscope_engines.precisions import ON_GPU
from mutoscope_engines.targets import Target, find_target
from mutoscope_engines.tensorrt.library import LIBRARIES, TensorRT
from mutoscope_engines.tensorrt.process import compile_in_process

from ..bundle.bundle import Bundle
from ..bundle.manifest import Graph
from ..errors import BundleError, EngineError, TargetError
from ..values import checks
from ..values.parameters import HEIGHT_WIDTH, HEIGHT_WIDTH_FRAMES, about, names, parameter
from .engine_budget import check_budget
from .engine_shapes import LargestVideo, profile_of

TARGETS = names(",", ("rtx40", "rtx50"))


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What to build."""

    TITLE: ClassVar[str] = "engines"

    target: str | tuple[str, ...] = field(
        metadata=about(
            "GPUs to build for: rtx20, rtx30, rtx40, rtx50, gb10 or a compute capability such as sm80; separate "
            "several with commas",
            form=TARGETS,
        )
    )
    precision: str | None = parameter(
        "precision of the denoiser; the other graphs use bf16, or fp16 with fp16 (default: bf16, or fp16 for rtx20)",
        choices=ON_GPU,
    )
    shapes: tuple[int, int, int] | None = parameter(
        "largest video to support: height x width x frames, such as 480x832x81 (default: the bundle's default size)",
        unit="HxWxT",
        form=HEIGHT_WIDTH_FRAMES,
    )
    branches_per_call: int | None = parameter(
        "guidance branches in one call of the network; 1 needs less memory (default: 2)", unit="1|2"
    )
    tile: tuple[int, int] | None = parameter(
        "decode in tiles of at most this many pixels, such as 480x480, to need less memory (default: no tiles)",
        unit="HxW",
        form=HEIGHT_WIDTH,
    )
    exact_size: bool = parameter(
        "build for the largest size only, not for smaller ones; needs less memory at run time", False
    )
    weight_streaming: bool = parameter(
        "let weights stay in host memory, for GPUs with little memory; turns CUDA graphs off", False
    )
    into_bundle: bool = parameter(
        "also put the engines into the bundle, to ship both together; prints the SHA-256 that whoever loads them "
        "must name",
        False,
    )
    lean: str | None = parameter(
        "put the engines into a new copy of the bundle that has no graphs, in this folder, for machines whose GPUs the "
        "engines are for; prints the same SHA-256",
        unit="FOLDER",
    )
    backend: str = parameter("compiler", "tensorrt-rtx", choices=tuple(LIBRARIES))


@dataclass(frozen=True)
class EngineJob:
    """One engine to build."""

    graph: Graph
    targets: tuple[Target, ...]
    video: LargestVideo
    identity: EngineIdentity

    @property
    def target(self) -> str:
        """The names of all its targets, with commas between them."""
        return ",".join(target.name for target in self.targets)

    def __str__(self) -> str:
        return f"{self.graph.name} {self.graph.precision} for {self.target}"


def plan_engines(bundle: Bundle, options: BuildOptions) -> list[EngineJob]:
    """Every engine that the options ask for, in the order in which they are built.

    Raises:
        TargetError: a target that there is not, or a precision that it does not have; lists those there are.
        RequestError: a size that the model cannot make.
        BundleError: the bundle has no graph in the precision, or no graphs.
        BackendUnavailableError: what compiles is not installed.
    """
    if bundle.left_out:
        raise BundleError(f"{bundle.root} was shipped without graphs. Build engines from the whole bundle")
    library, manifest = LIBRARIES[options.backend], bundle.manifest
    video = LargestVideo.choose(options.shapes, options.branches_per_call, manifest, options.tile)
    jobs = {}
    for targets, precision in _groups(checks.names("target", options.target, TARGETS), options.precision, library):
        for role in manifest.roles:
            graphs = dict.fromkeys(
                graph for loras in (False, True) for graph in manifest.graphs_of(role, precision, with_loras=loras)
            )
            for graph in graphs:
                identity = library.identity(
                    bundle.content_of(graph),
                    graph.precision,
                    targets,
                    profile_of(graph, video, manifest, exact_size=options.exact_size),
                    weight_streaming=options.weight_streaming,
                )
                jobs[identity.digest] = EngineJob(graph, targets, video, identity)
    return list(jobs.values())


def build_engine(
    bundle: Bundle, job: EngineJob, options: BuildOptions, cache: EngineCache, on_tick: Callable[[], None]
) -> tuple[EngineReport, bool]:
    """Builds an engine, unless the cache has it whole.

    Returns: its report, and whether it was built now.

    Raises:
        EngineError: the graph does not compile, or not within its budget of memory; nothing is kept then.
        OutOfMemoryError: the compiler was killed.
    """
    try:
        with cache.reserve(job.identity) as slot:
            if slot.record:
                return slot.record.report, False
            return _build(bundle, job, options, slot, on_tick), True
    except OSError as error:
        raise EngineError(
            f"{error.filename or cache.folder} cannot be written: {error.strerror}. "
            "Make room, or name another folder for engines with MUTOSCOPE_CACHE"
        ) from error


def _build(
    bundle: Bundle, job: EngineJob, options: BuildOptions, slot: Reservation, on_tick: Callable[[], None]
) -> EngineReport:
    graph, manifest = job.graph, bundle.manifest
    compiled = compile_in_process(bundle.path(graph.file), slot.partial, options.backend, job.identity, on_tick=on_tick)
    where = f"{job.target} at {job.video}"
    symbols = job.video.symbols(manifest, graph.role)
    check_budget(graph, symbols, manifest.geometry, compiled, where, manifest.controls)
    report = EngineReport(
        graph=graph.name,
        target=job.target,
        precision=graph.precision,
        activation_bytes=compiled.activation_bytes,
        weight_bytes=compiled.weight_bytes,
        engine_bytes=compiled.engine_bytes,
        build_s=compiled.build_s,
        host_peak_bytes=compiled.host_peak_bytes,
    )
    return slot.publish(report, compiled.sha256).report


def _groups(
    named: tuple[str, ...], precision: str | None, library: TensorRT
) -> Iterator[tuple[tuple[Target, ...], str]]:
    """The targets that share an engine, and its precision. Those without bfloat16 share none with the others."""
    targets = sorted(set(map(find_target, named)), key=lambda target: target.compute_capability)
    if len(targets) > 1 and not library.builds_for_other_gpus:
        raise TargetError(
            f"{library.name} builds only for the GPU of this machine; got {', '.join(named)}. Name one target"
        )
    for target in targets:
        if precision is not None and precision not in target.precisions:
            raise TargetError(
                f"{target.name} does not support {precision}; it supports: {', '.join(target.precisions)}"
            )
    for old in (False, True):
        if group := tuple(target for target in targets if ("bf16" not in target.precisions) == old):
            yield group, precision or group[0].precisions[0]
