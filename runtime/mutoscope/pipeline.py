"""From prompt to frames: encode text, denoise, decode, one after the other.

Knows requests, jobs and the order of the stages. Knows nothing of files, codecs or any backend's library.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from mutoscope_engines.device.device import DeviceTensor
from mutoscope_engines.errors import TAKE_LESS_MEMORY

from .builtin import bundle_path
from .bundle.bundle import Bundle
from .conditions.text import Tokenizer
from .errors import BackendUnavailableError, OutOfMemoryError, RequestError, ShapeError
from .families import load_family
from .planning.execution import Execution
from .planning.plan import Job, Plan, make_job, refuse_impossible_defaults
from .request import OutputOptions, RuntimeOptions, VideoRequest
from .running.loaded import LoadedGraphs
from .running.stages import Frames, OnStep, StepEvent, decode, denoise

__all__ = ["FrameStream", "Frames", "OnStage", "OnStep", "Pipeline", "StageTimes", "StepEvent", "Video"]

Parameters = TypeVar("Parameters", VideoRequest, RuntimeOptions, OutputOptions)


@dataclass
class StageTimes:
    """Seconds each stage of one video took, loading its graphs included."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, started: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


OnStage = Callable[[str], object]


class Pipeline:
    """A bundle on a backend, ready to make videos. Lives for minutes; a request lives for one call.

    Several threads may use one pipeline, and one process may hold several. Close it, or use it in a `with`, to free its
    memory. Nothing of a request is ever kept in it.
    """

    def __init__(self, bundle: Bundle, options: RuntimeOptions, cuda_stream: int | None = None) -> None:
        self.bundle = bundle
        self.options = options
        self._family = load_family(bundle.manifest.family)
        refuse_impossible_defaults(bundle.manifest, self._family)
        self._tokenizer = Tokenizer(bundle)
        self._execution = Execution.choose(options, bundle, cuda_stream)
        self._graphs = LoadedGraphs(bundle, self._execution)

    @classmethod
    def load(cls, bundle: Path | str | None = None, *, cuda_stream: int | None = None, **options: Any) -> Pipeline:
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
        opened = Bundle.open(bundle_path() if bundle is None else bundle)
        return cls(opened, _build(RuntimeOptions, options), cuda_stream)

    def plan(self, prompt: str | None = None, /, **parameters: Any) -> Plan:
        """What `generate` would do, every default resolved; opens no graph.

        Raises:
            RequestError: a value that cannot be served; names the nearest that can.
        """
        return self._job(prompt, parameters).plan

    def preload(self, prompt: str | None = None, /, **parameters: Any) -> Plan:
        """Opens the graphs of a video before it is asked for. Where its plan keeps none loaded, opens none.

        Raises:
            RequestError: a value that cannot be served; names the nearest that can.
            OutOfMemoryError: they do not fit.
        """
        plan = self._job(prompt, parameters).plan
        if plan.keep_loaded:
            self._graphs.preload(plan)
        return plan

    def generate(
        self,
        prompt: str | None = None,
        /,
        *,
        on_step: OnStep | None = None,
        on_stage: OnStage | None = None,
        **parameters: Any,
    ) -> Video:
        """Makes a video.

        Args:
            prompt: what it shows, first or by name.
            on_step: called after each denoising step. What it raises stops the run; raise `CancelledError` to cancel.
            on_stage: called when a stage begins: with "text_encoder", "denoiser" and "vae_decoder".
            parameters: the other fields of `VideoRequest`.

        Raises:
            RequestError: a value that cannot be served.
            NumericalError: a step gave NaN or Inf.
            OutOfMemoryError: this process or the backend ran out of memory.
            ShapeError: the bundle gives other frames than the plan says.
            CancelledError: the pipeline was closed meanwhile.
            RuntimeError: it was closed before.
        """
        with self.stream(prompt, on_step=on_step, on_stage=on_stage, **parameters) as stream:
            return Video(_collected(stream), stream.plan)

    def stream(
        self,
        prompt: str | None = None,
        /,
        *,
        on_step: OnStep | None = None,
        on_stage: OnStage | None = None,
        **parameters: Any,
    ) -> FrameStream:
        """Like `generate`, but gives the frames as they are decoded: iterate over it for uint8 `[n, H, W, 3]`.

        Memory does not grow with the number of frames, unless they are decoded in tiles, for want of memory: the first
        come once the last tile is reached. Nothing runs before the first chunk is asked for.
        """
        return FrameStream(self._graphs, self._job(prompt, parameters), on_step, on_stage)

    def close(self) -> None:
        """Stops what runs, frees the graphs and their memory. Closing twice does nothing."""
        self._graphs.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _job(self, prompt: str | None, parameters: dict[str, Any]) -> Job:
        if self._graphs.closed:
            raise RuntimeError("this pipeline is closed; load it again to make videos")
        if prompt is not None and "prompt" in parameters:
            raise RequestError("the prompt is given twice; give it first, or by name")
        request = _build(VideoRequest, {"prompt": prompt, **parameters})
        return make_job(request, self._execution, self.bundle, self._family, self._tokenizer)


@dataclass(frozen=True)
class Video:
    """A finished video: `frames` uint8 `[T, H, W, 3]`, and the plan that made it."""

    frames: Frames
    plan: Plan

    def save(self, path: Path | str, **options: Any) -> Path:
        """Writes the video under its name once it is whole; the ending chooses the format.

        Args:
            path: a name ending with `.mp4`, `.gif` or another of `video_formats.FORMATS`, or a folder name for PNGs.
            options: the fields of `OutputOptions`.

        Raises:
            OutputError: unknown ending or codec, no permission, no space.
            RequestError: there is no such option.
        """
        from .output.video import write_video

        return write_video(path, iter([self.frames]), self.plan, **vars(_build(OutputOptions, options)))


class FrameStream:
    """The frames of one video, chunk by chunk, and what is known of it meanwhile."""

    def __init__(
        self, graphs: LoadedGraphs, job: Job, on_step: OnStep | None = None, on_stage: OnStage | None = None
    ) -> None:
        self.plan = job.plan
        self.times = StageTimes()
        self._on_stage = on_stage
        self._decoder = graphs.execution.placements["vae_decoder"].backend
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
            RequestError: they are decoded in tiles, and put together in host memory.
        """
        if not self._decoder.on_device:
            raise BackendUnavailableError(
                f"{self._decoder.name} keeps frames in host memory; iterate over the stream, or take a GPU backend"
            )
        if self.plan.decoder_tiles > 1:
            raise RequestError(
                f"this video is decoded {self.plan.memory['vae_decoder']['way']}, put together in host memory; iterate "
                "over the stream, or have it decoded whole: with more memory, a smaller video, or no tile option"
            )
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
            started = self._begin("text_encoder")
            with graphs.use("text_encoder", job.plan) as run:
                feeds = {"input_ids": job.tokens.input_ids, "attention_mask": job.tokens.attention_mask}
                prompt_embeds = run(feeds)["prompt_embeds"].numpy()
            self.times.add("text_encoder", started)

            started = self._begin("denoiser")
            latents = denoise(graphs, job, prompt_embeds, on_step)
            self.times.add("denoiser", started)

            started = self._begin("vae_decoder")
            for frames in decode(graphs, job.plan, latents):
                chunk = frames.numpy() if self._copied else frames
                self.times.add("vae_decoder", started)
                yield chunk
                started = time.perf_counter()

    def _begin(self, stage: str) -> float:
        started = time.perf_counter()
        if self._on_stage is not None:
            self._on_stage(stage)
        return started


def _collected(stream: FrameStream) -> Frames:
    """All frames of a stream, in the one array that the plan says."""
    plan = stream.plan
    with _memory_errors_translated():
        frames = np.empty((plan.num_frames, plan.height, plan.width, 3), np.uint8)
    done = 0
    for chunk in stream:
        if chunk.shape[1:] != frames.shape[1:] or done + len(chunk) > len(frames):
            raise ShapeError(f"the decoder gave frames {chunk.shape} after {done}; the plan says {frames.shape} in all")
        frames[done : done + len(chunk)] = chunk
        done += len(chunk)
    if done != len(frames):
        raise ShapeError(f"the decoder gave {done} frames; the plan says {len(frames)}")
    return frames


@contextmanager
def _memory_errors_translated() -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise OutOfMemoryError(f"out of memory: {error}; {TAKE_LESS_MEMORY}") from error


def _build(kind: type[Parameters], values: dict[str, Any]) -> Parameters:
    known = [parameter.name for parameter in fields(kind)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise RequestError(f"unknown parameter {', '.join(unknown)}; there are: {', '.join(known)}")
    return kind(**values)
