"""Mutoscope as an implementation, with any backend. Knows the pipeline, its stages and graphs."""

from __future__ import annotations

import atexit
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from mutoscope import Pipeline
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.contract import DECODE, LOOP_INPUTS
from mutoscope.bundle.interface import interface_of
from mutoscope.output.encoders import silence
from mutoscope.planning.execution import Execution
from mutoscope.planning.plan import Plan
from mutoscope.request import RuntimeOptions, VideoRequest
from mutoscope.running.decode import decode
from mutoscope.running.loaded import LoadedGraphs
from mutoscope_engines.backends import JOINED_BY
from mutoscope_engines.session import Tensor
from mutoscope_engines.symbols import sized
from numpy.typing import NDArray

from .bulk import bulk_run
from .clips import FramesFile, TimedPipeline, clip_run
from .experts import KEPT, LIMITED, PLANNED, experts_run
from .implementation import Implementation, Work, decode_latents, forward_feeds, text_lengths
from .measuring import Answer, Run
from .server import server_run, serving

OfOurs = TypeVar("OfOurs", bound=Pipeline)

_loaded = ExitStack()  # what a process of the benchmark loads, it holds until it ends
atexit.register(_loaded.close)


class Ours(Implementation):
    """Mutoscope with one backend, or with the fastest of several."""

    variants = ()  # those of the bundle

    def __init__(self, backend: str) -> None:
        self.name = f"mutoscope {backend}"
        self.import_statement = (
            "import mutoscope, tokenizers, av; from mutoscope_engines.backends import backends_named; "
            f"[backend.version() for backend in backends_named({backend!r})]"  # which loads what executes
        )
        self._backend = backend

    def unavailable_because(self) -> str | None:
        return None

    def cannot(self, work: Work, precision: str) -> str | None:
        there = Bundle.open(work.bundle, verify=False).manifest.precisions()
        return None if precision in there else f"the bundle has no graphs in {precision}; it has {', '.join(there)}"

    def load(self, work: Work, precision: str) -> Run:
        given = {"precision": precision, "threads": work.threads}
        load = _LOAD[work.kind]
        options = RuntimeOptions.from_dict(work.runtime | given)  # whose backends a peer may have added to
        return load(work, replace(options, backend=tuple(self._backend.split(JOINED_BY))))


def _load_clip(work: Work, options: RuntimeOptions) -> Run:
    return clip_run(_preloaded(TimedPipeline(Bundle.open(work.bundle), options), work), work)


def _load_bulk(work: Work, options: RuntimeOptions) -> Run:
    return bulk_run(_preloaded(Pipeline(Bundle.open(work.bundle), options), work), work)


def _load_server(work: Work, options: RuntimeOptions) -> Run:
    pipeline = _preloaded(Pipeline(Bundle.open(work.bundle), options), work)
    return server_run(pipeline, work, _loaded.enter_context(serving(work.bundle, options)))


def _load_experts(work: Work, options: RuntimeOptions) -> Run:
    """With the memory that there is, with as much as the larger expert takes, and with everything loaded."""
    bundle = Bundle.open(work.bundle)
    planned = TimedPipeline(bundle, options)
    limit = planned.plan(VideoRequest.from_dict(work.request)).memory_peak_bytes
    pipelines = {
        PLANNED: planned,
        LIMITED: TimedPipeline(bundle, replace(options, memory_limit=limit)),
        KEPT: TimedPipeline(bundle, options, keep_loaded=True),
    }
    return experts_run({name: clip_run(_preloaded(each, work), work) for name, each in pipelines.items()})


def _preloaded(pipeline: OfOurs, work: Work) -> OfOurs:
    silence()
    _loaded.enter_context(pipeline)
    pipeline.preload(VideoRequest.from_dict(work.request))
    return pipeline


def _graphs(work: Work, options: RuntimeOptions) -> tuple[LoadedGraphs, Plan]:
    """What the stages run on, all of it kept loaded, and a plan for this backend."""
    bundle = Bundle.open(work.bundle)
    with Pipeline(bundle, options) as pipeline:
        plan = pipeline.plan(VideoRequest.from_dict(work.request))
    execution = Execution.choose(options, bundle)
    lengths = plan.conditions.lengths | (text_lengths(bundle, work.text_tokens) if work.text_tokens else {})
    conditions, memory = replace(plan.conditions, lengths=lengths), replace(plan.memory, keep_loaded=True)
    graphs = LoadedGraphs(bundle, execution)
    _loaded.callback(graphs.close)
    return graphs, replace(plan, conditions=conditions, memory=memory)


def _load_forward(work: Work, options: RuntimeOptions) -> Run:
    """The denoiser's graph; with these matrices its next state is the guided velocity and nothing else."""
    graphs, plan = _graphs(work, options)
    rows, weights = plan.schedule.state_rows, np.asarray(plan.guidance.weights, np.float32)
    symbols = plan.sizes.symbols("denoiser", len(weights), plan.decoder_window)
    parts = graphs.bundle.manifest.graphs_of("denoiser", graphs.execution.main.precision)
    others = [tensor for name, tensor in interface_of(parts).inputs.items() if name not in LOOP_INPUTS]
    unfed: dict[str, Any] = {
        **{tensor.name: np.zeros(sized(tensor.shape, symbols), tensor.dtype) for tensor in others},
        **forward_feeds(work),
        "state": np.zeros((rows, *plan.geometry.latents_shape), np.float32),
        "solver_a": np.zeros((rows, rows), np.float32),
        "solver_b": np.eye(1, rows, dtype=np.float32)[0],
    }
    together = replace(plan.option_of("denoiser"), branches_per_call=len(weights))
    memory = replace(plan.memory, options=plan.memory.options | {"denoiser": together})
    call = _loaded.enter_context(graphs.use("denoiser", replace(plan, memory=memory)))

    def run() -> Answer:
        started = time.perf_counter()
        velocity(weights)
        elapsed = time.perf_counter() - started
        if not Path(work.result).exists():
            branches = np.eye(len(weights), dtype=np.float32)
            np.save(work.result, np.stack([velocity(branch) for branch in branches]))
        return {"elapsed_s": elapsed}

    def velocity(branch_weights: NDArray[np.float32]) -> NDArray[np.float32]:
        outputs: dict[str, Tensor] = call({**unfed, "guidance_weights": branch_weights})
        unfed.clear()  # a binding keeps what it was fed
        return outputs["next_state"].row(0).numpy()

    return run


def _load_decode(work: Work, options: RuntimeOptions) -> Run:
    graphs, plan = _graphs(work, options)
    graphs.preload(plan, (DECODE,))
    latents = decode_latents(work)
    output = FramesFile(work)

    def run() -> Answer:
        started = time.perf_counter()
        for tensor in decode(graphs, plan, latents):
            output.take(tensor.numpy())
        elapsed = time.perf_counter() - started
        output.save()
        return {"elapsed_s": elapsed, "sha256": output.sha256}

    return run


_LOAD = {
    "clip": _load_clip, "forward": _load_forward, "decode": _load_decode, "bulk": _load_bulk, "server": _load_server,
    "experts": _load_experts,
}  # fmt: skip
