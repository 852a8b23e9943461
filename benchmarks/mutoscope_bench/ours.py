"""Mutoscope as an implementation, with any backend. Knows the pipeline, its stages and graphs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from mutoscope import Pipeline
from mutoscope.bundle.bundle import Bundle
from mutoscope.output.encoders import silence
from mutoscope.output.video import write_video
from mutoscope.planning.execution import Execution
from mutoscope.planning.plan import Plan
from mutoscope.request import RuntimeOptions
from mutoscope.running.loaded import LoadedGraphs
from mutoscope.running.stages import Frames, StepEvent, decode
from mutoscope_engines.session import Tensor
from numpy.typing import NDArray

from .implementation import Implementation, Work, batch_plans, decode_latents, forward_feeds
from .measuring import Answer, Run


class Ours(Implementation):
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
        there = Bundle.open(work.bundle, verify=False).manifest.precisions("denoiser")
        return None if precision in there else f"the bundle has no graphs in {precision}; it has {', '.join(there)}"

    def load(self, work: Work, precision: str) -> Run:
        options = work.runtime | {"backend": self._backend, "precision": precision, "threads": work.threads}
        return {"clip": _load_clip, "forward": _load_forward, "decode": _load_decode}[work.kind](work, options)


def _load_clip(work: Work, options: dict[str, Any]) -> Run:
    """The way of `mutoscope generate`: frames go to the encoder as they are decoded."""
    silence()
    pipeline = Pipeline.load(work.bundle, **options)
    pipeline.preload(**work.request)
    output = _Output(work)

    def run() -> Answer:
        started = time.perf_counter()
        answers = [_clip(pipeline, work, seed, file, output) for seed, file in batch_plans(work)]
        elapsed = time.perf_counter() - started
        output.save()
        return answers[0] | {"elapsed_s": elapsed, "sha256": output.sha256}

    return run


def _clip(pipeline: Pipeline, work: Work, seed: int, file: Path, output: _Output) -> Answer:
    marks: list[float] = []

    def on_stage(stage: str) -> None:
        if stage == "denoiser":
            marks.append(time.perf_counter())

    def on_step(event: StepEvent) -> None:
        marks.append(time.perf_counter())

    started = time.perf_counter()
    first_frame: list[float] = []

    def watched(stream: Iterator[Frames]) -> Iterator[Frames]:
        for chunk in stream:
            if not first_frame:
                first_frame.append(time.perf_counter() - started)
            output.take(chunk)
            yield chunk

    request = work.request | {"seed": seed}
    with pipeline.stream(**request, on_step=on_step, on_stage=on_stage) as stream:
        write_video(file, watched(stream), stream.plan)
    elapsed = time.perf_counter() - started
    seconds = stream.times.seconds
    stages = {
        "text_encoder": seconds["text_encoder"],
        "denoiser": seconds["denoiser"],
        "decode": seconds["vae_decoder"],
        "first_frame": first_frame[0],
        "encode": elapsed - sum(seconds.values()),
    }
    return {"stages": stages, "steps": [later - earlier for earlier, later in pairwise(marks)]}


class _Output:
    """Takes the frames of the first run to a file as they come, and their hash; of later runs, nothing."""

    def __init__(self, work: Work) -> None:
        self.sha256: str | None = None
        self._hash = hashlib.sha256()
        self._path = Path(work.result)
        self._frames = work.plan["num_frames"] * work.batch
        self._file: IO[bytes] | None = None

    def take(self, chunk: Frames) -> None:
        if self.sha256 is not None:
            return
        if self._file is None:
            self._file = self._path.open("wb")
            header = {"descr": "|u1", "fortran_order": False, "shape": (self._frames, *chunk.shape[1:])}
            np.lib.format.write_array_header_1_0(self._file, header)
        data = chunk.tobytes()
        self._hash.update(data)
        self._file.write(data)

    def save(self) -> None:
        if self._file is not None and self.sha256 is None:
            self._file.close()
            self.sha256 = self._hash.hexdigest()


def _graphs(work: Work, options: dict[str, Any]) -> tuple[LoadedGraphs, Plan]:
    """What the stages run on, all of it kept loaded, and a plan for this backend."""
    runtime = RuntimeOptions(**options)
    with Pipeline.load(work.bundle, **options) as pipeline:
        plan = pipeline.plan(**work.request)
    bundle = Bundle.open(work.bundle, verify=False)
    execution = Execution.choose(runtime, bundle)
    longer = replace(plan, keep_loaded=True, max_sequence_length=work.text_tokens or plan.max_sequence_length)
    return LoadedGraphs(bundle, execution), longer


def _load_forward(work: Work, options: dict[str, Any]) -> Run:
    """The denoiser's graph; with these matrices its next state is the guided velocity and nothing else."""
    graphs, plan = _graphs(work, options)
    rows, weights = plan.state_rows, np.asarray(plan.guidance_weights, np.float32)
    unfed: dict[str, Any] = {
        **forward_feeds(work),
        "state": np.zeros((rows, *plan.latents_shape), np.float32),
        "solver_a": np.zeros((rows, rows), np.float32),
        "solver_b": np.eye(1, rows, dtype=np.float32)[0],
    }
    borrowed = graphs.use("denoiser", replace(plan, branches_per_call=len(weights)))
    call = borrowed.__enter__()  # for the life of this process

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


def _load_decode(work: Work, options: dict[str, Any]) -> Run:
    graphs, plan = _graphs(work, options)
    graphs.preload(plan, ("vae_decoder",))
    latents = decode_latents(work)
    output = _Output(work)

    def run() -> Answer:
        started = time.perf_counter()
        for tensor in decode(graphs, plan, latents):
            output.take(tensor.numpy())
        elapsed = time.perf_counter() - started
        output.save()
        return {"elapsed_s": elapsed, "sha256": output.sha256}

    return run
