"""From prompt to frames: encode text, denoise, decode, one after the other.

Knows requests, jobs and the order of the stages. Knows nothing of files, codecs or any backend's library.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from mutoscope_engines.device.device import DeviceTensor
from mutoscope_engines.system.machine import memory_bytes

from .builtin import bundle_path
from .bundle.bundle import Bundle
from .bundle.contract import CONDITION, DECODE, DENOISE
from .codec import refuse_unknown
from .conditions import load_conditions
from .errors import SMALLER_VIDEO, BackendUnavailableError, OutOfMemoryError, RequestError
from .output.frames import Frames, checked
from .planning.execution import Execution
from .planning.plan import Job, Plan
from .planning.planner import make_job
from .request import (
    OutputFields,
    OutputOptions,
    RequestFields,
    RuntimeFields,
    RuntimeOptions,
    VideoRequest,
    make_options,
    make_request,
)
from .running.decode import decode
from .running.denoise import OnStep, StepEvent, denoise
from .running.encode import EncodedConditions, encode
from .running.loaded import LoadedGraphs
from .values import checks
from .values.byte_sizes import format_bytes

__all__ = [
    "EncodedConditions",
    "FrameStream",
    "Frames",
    "OnStage",
    "OnStep",
    "Pipeline",
    "StageTimes",
    "StepEvent",
    "Video",
]


@dataclass
class StageTimes:
    """Seconds each stage of one video took, loading its graphs included."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, started: float) -> None:
        """Counts the seconds since `started`, a value of `time.perf_counter`, to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


OnStage = Callable[[str], object]


class Pipeline:
    """A bundle on a backend, ready to make videos. Lives for minutes; a request lives for one call.

    Several threads may use one pipeline, and one process may hold several. Close it, or use it in a `with`, to free its
    memory. Nothing of a request is ever kept in it; a caller may keep what was encoded: see `stream`.
    """

    def __init__(
        self, bundle: Bundle, options: RuntimeOptions | None = None, *, cuda_stream: int | None = None
    ) -> None:
        self.options = RuntimeOptions() if options is None else options
        if (trusted := self.options.engines_sha256) is not None:
            bundle = bundle.with_engines(checks.hashes("engines_sha256", trusted))
        self.bundle = bundle
        self._conditions = load_conditions(bundle)
        self._execution = Execution.choose(self.options, bundle, cuda_stream)
        self._graphs = LoadedGraphs(bundle, self._execution)

    @classmethod
    def load(
        cls,
        bundle: Path | str | None = None,
        *,
        cuda_stream: int | None = None,
        **options: Unpack[RuntimeFields],
    ) -> Pipeline:
        """Opens and verifies a bundle; the built-in one when none is named.

        Args:
            bundle: a folder that export wrote.
            cuda_stream: the handle of a CUDA stream of the caller's, which outlives the pipeline, to queue all work on.
            options: the fields of `RuntimeOptions`.

        Raises:
            BundleError: the bundle is missing, damaged or unsafe.
            BackendUnavailableError: no backend can run the bundle here.
            RequestError: there is no such option, or it cannot have this value.
        """
        chosen = make_options(options)
        return cls(Bundle.open(bundle_path() if bundle is None else bundle), chosen, cuda_stream=cuda_stream)

    @property
    def settled(self) -> RuntimeOptions:
        """The options with those decided that were left open: backend, precision, threads and the memory limit."""
        execution = self._execution
        names = tuple(dict.fromkeys(where.backend.name for where in execution.placements.values()))
        return replace(
            self.options,
            backend=names if len(names) > 1 else names[0],
            precision=execution.main.precision,
            threads=execution.session.threads,
            memory_limit=execution.memory_limit_bytes,
        )

    def plan(self, request: VideoRequest | str | None = None, /, **fields: Unpack[RequestFields]) -> Plan:
        """What `generate` would do, every default resolved; opens no graph.

        Raises:
            RequestError: a value that cannot be served; names the nearest that can.
        """
        return self._job(request, fields).plan

    def preload(self, request: VideoRequest | str | None = None, /, **fields: Unpack[RequestFields]) -> Plan:
        """Opens the graphs of a video before it is asked for. Where its plan keeps none loaded, opens none.

        Raises:
            RequestError: a value that cannot be served; names the nearest that can.
            OutOfMemoryError: they do not fit.
            CancelledError: the pipeline was closed meanwhile.
        """
        plan = self._job(request, fields).plan
        if plan.memory.keep_loaded:
            self._graphs.preload(plan)
        return plan

    def generate(
        self,
        request: VideoRequest | str | None = None,
        /,
        *,
        on_step: OnStep | None = None,
        on_stage: OnStage | None = None,
        **fields: Unpack[RequestFields],
    ) -> Video:
        """Makes a video.

        Args:
            request: what to make, or only its prompt.
            on_step: called after each denoising step. What it raises stops the run; raise `CancelledError` to cancel.
            on_stage: called when a stage begins: with "condition", "denoise" and "decode".
            fields: those of `VideoRequest`, `prompt` among them. They take the place of what `request` says.

        Raises:
            RequestError: a value that cannot be served, or more frames than fit into memory at once.
            NumericalError: a step gave NaN or Inf.
            OutOfMemoryError: this process or the backend ran out of memory.
            ShapeError: the bundle gives other frames than the plan says.
            CancelledError: the pipeline was closed meanwhile.
            RuntimeError: it was closed before.
        """
        with self.stream(request, on_step=on_step, on_stage=on_stage, **fields) as stream:
            return Video(_collected(stream), stream.plan)

    def stream(
        self,
        request: VideoRequest | str | None = None,
        /,
        *,
        on_step: OnStep | None = None,
        on_stage: OnStage | None = None,
        encoded: EncodedConditions | None = None,
        **fields: Unpack[RequestFields],
    ) -> FrameStream:
        """Like `generate`, but gives the frames as they are decoded: iterate over it for uint8 `[n, H, W, 3]`.

        Memory does not grow with the number of frames, unless they are decoded in tiles, for want of memory: the first
        come once the last tile is reached. Nothing runs before the first chunk is asked for.

        Args:
            request: what to make, or only its prompt.
            on_step: as `generate` has it, and so have the next and the fields.
            on_stage: see there.
            encoded: an `EncodedConditions()` of the caller's. Of videos that are given the same one in turn, those with
                the same prompts run the text encoder once; their frames stay the same, bit for bit.
            fields: see there.
        """
        return FrameStream(self._graphs, self._job(request, fields), on_step, on_stage, encoded)

    def close(self) -> None:
        """Stops what runs or loads, frees the graphs and their memory. Closing twice does nothing."""
        self._graphs.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _job(self, request: VideoRequest | str | None, fields: RequestFields) -> Job:
        if self._graphs.closed:
            raise RuntimeError("this pipeline is closed; load it again to make videos")
        with _memory_errors_translated():  # of clips, which a plan reads
            return make_job(make_request(request, fields), self._execution, self.bundle, self._conditions)


@dataclass(frozen=True, eq=False)
class Video:
    """A finished video: `frames` uint8 `[T, H, W, 3]`, and the plan that made it."""

    frames: Frames
    plan: Plan

    def save(self, path: Path | str, **options: Unpack[OutputFields]) -> Path:
        """Writes the video under its name once it is whole; the ending chooses the format.

        Args:
            path: a name ending with `.mp4`, `.gif` or another of `mutoscope.output.FORMATS`, or a folder name for PNGs.
            options: the fields of `OutputOptions`.

        Raises:
            OutputError: unknown ending or codec, no permission, no space.
            RequestError: there is no such option.
        """
        from .output.video import write_video

        refuse_unknown(OutputOptions, options)
        return write_video(path, [self.frames], self.plan.header, **options)


class FrameStream:
    """The frames of one video, chunk by chunk, and what is known of it meanwhile."""

    def __init__(
        self,
        graphs: LoadedGraphs,
        job: Job,
        on_step: OnStep | None = None,
        on_stage: OnStage | None = None,
        encoded: EncodedConditions | None = None,
    ) -> None:
        self.plan = job.plan
        self.times = StageTimes()
        self._on_stage = on_stage
        self._encoded = encoded
        self._decoder = graphs.execution.placements[DECODE].backend
        self._copied = True
        self._chunks = self._run(graphs, job, on_step)

    def __iter__(self) -> Iterator[Frames]:
        return self

    def __next__(self) -> Frames:
        chunk: Frames = next(self._chunks)
        return chunk

    def on_device(self) -> Iterator[DeviceTensor]:
        """The frames as they lie on the GPU, uint8 `[n, H, W, 3]`, each valid until the next are asked for.

        torch, CuPy, PyCUDA, Numba and JAX take them without a copy, by DLPack or `__cuda_array_interface__`, in the
        order of their own stream.

        Raises:
            BackendUnavailableError: the backend runs on the CPU.
            RequestError: they are decoded in tiles, and put together in host memory, or go on from a clip.
        """
        if not self._decoder.on_device:
            raise BackendUnavailableError(
                f"{self._decoder.name} keeps frames in host memory; iterate over the stream, or use a GPU backend"
            )
        if self.plan.decoder_tiles > 1:
            raise RequestError(
                f"this video is decoded in {self.plan.decoder_tiles} tiles, put together in host memory; iterate over "
                "the stream, or let it be decoded whole: raise memory_limit, ask for a smaller video, or leave tile out"
            )
        if self.plan.geometry.frames_before:
            raise RequestError("with extend the first frames are in host memory; iterate over the stream")
        self._copied = False
        return self._chunks

    def close(self) -> None:
        """Gives up: frees what the unfinished video holds."""
        self._chunks.close()

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, graphs: LoadedGraphs, job: Job, on_step: OnStep | None) -> Generator[Any]:
        with _memory_errors_translated():
            started = self._begin(CONDITION)
            encoded = encode(graphs, job, self._encoded)
            self.times.add(CONDITION, started)

            started = self._begin(DENOISE)
            latents = denoise(graphs, job, encoded, on_step)
            self.times.add(DENOISE, started)

            self._begin(DECODE)
            yield from _frames_before(job)
            started = time.perf_counter()
            joint = job.before is not None  # the first frame that is made is the last of the clip
            # Latents of reference pictures come first, and are not shown.
            shown = graphs.bundle.manifest.frames.latent_frames(job.plan.geometry.num_frames)
            for frames in decode(graphs, job.plan, latents[:, -shown:]):
                chunk: Any = frames.numpy() if self._copied else frames
                self.times.add(DECODE, started)
                if not joint or len(chunk) > 1:
                    yield chunk[1:] if joint else chunk
                joint = False
                started = time.perf_counter()

    def _begin(self, stage: str) -> float:
        started = time.perf_counter()
        if self._on_stage is not None:
            self._on_stage(stage)
        return started


def _frames_before(job: Job) -> Iterator[Frames]:
    """Those of the clip that the video goes on from, one at a time.

    Raises:
        RequestError: the file is not that any more that was planned with.
    """
    if job.before is not None:
        size = job.plan.geometry.height, job.plan.geometry.width
        yield from (frame[None] for frame in job.before.frames(*size))


def _collected(stream: FrameStream) -> Frames:
    """All frames of a stream, in the one array that the plan says."""
    header = stream.plan.header
    needed, there = math.prod(header.shape), memory_bytes()
    if needed > there:
        raise RequestError(
            f"this video has {format_bytes(needed)} of frames, and there are {format_bytes(there)} of memory to give "
            "them at once; take them from `stream`, chunk by chunk, or ask for a smaller height, width or num_frames"
        )
    with _memory_errors_translated():
        frames = np.empty(header.shape, np.uint8)
    done = 0
    for chunk in checked(stream, header):
        frames[done : done + len(chunk)] = chunk
        done += len(chunk)
    return frames


@contextmanager
def _memory_errors_translated() -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise OutOfMemoryError(f"out of memory: {error}; close other programs, or {SMALLER_VIDEO}") from error
    except OutOfMemoryError as error:  # of a backend, which knows nothing of videos
        raise OutOfMemoryError(f"{error}; or {SMALLER_VIDEO}") from error
