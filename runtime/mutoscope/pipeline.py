"""From prompt to frames: encode text, denoise, decode, one after the other.

Knows jobs and sessions. Knows nothing of files, codecs, the command line or any backend's library.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from mutoscope_engines.backends import choose_backend
from mutoscope_engines.session import SessionOptions, Tensor
from numpy.typing import NDArray

from .builtin import bundle_path
from .bundle import Bundle
from .errors import NumericalError, RequestError
from .families import load_family
from .loaded import LoadedGraphs
from .noise import standard_normal
from .plan import Job, Plan, make_job
from .preview import latents_to_rgb
from .request import RuntimeOptions, VideoRequest
from .text import Tokenizer

Frames = NDArray[np.uint8]
Parameters = TypeVar("Parameters", VideoRequest, RuntimeOptions)


@dataclass(frozen=True)
class StepEvent:
    """What `on_step` is told after each denoising step. `step` counts from 1 to `total`."""

    step: int
    total: int
    preview: Callable[[], Frames | None]
    """Frames uint8 `[F, h, w, 3]` from the latents as they are, or `None` where the bundle has no preview map."""


@dataclass
class StageTimes:
    """Seconds each stage of one video took, loading its graphs included."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, started: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


OnStep = Callable[[StepEvent], object]


class Pipeline:
    """A bundle on a backend, ready to make videos. Lives for minutes; a request lives for one call.

    Several threads may use one pipeline, and one process may hold several. Close it, or use it in a `with`, to free its
    memory. Nothing of a request is ever kept in it.
    """

    def __init__(self, bundle: Bundle, options: RuntimeOptions) -> None:
        self.bundle = bundle
        self.options = options
        self._family = load_family(bundle.manifest.family)
        self._tokenizer = Tokenizer(bundle)
        known = options.precision in bundle.manifest.precisions("denoiser")  # if not, the plan says which there are
        self._backend = choose_backend(options.backend, options.precision if known else None)
        self._graphs = LoadedGraphs(bundle, self._backend, SessionOptions(threads=options.threads))

    @classmethod
    def load(cls, bundle: Path | str | None = None, **options: Any) -> Pipeline:
        """Opens and verifies a bundle; the built-in one when none is named.

        Args:
            bundle: a folder that export wrote.
            options: the fields of `RuntimeOptions`.

        Raises:
            BundleError: the bundle is missing, damaged or unsafe.
            BackendUnavailableError: no backend can run here.
            RequestError: there is no such option.
        """
        return cls(Bundle.open(bundle_path() if bundle is None else bundle), _build(RuntimeOptions, options))

    def plan(self, prompt: str, **parameters: Any) -> Plan:
        """What `generate` would do, every default resolved; opens no graph.

        Raises:
            RequestError: a value that cannot be served; names the nearest that can.
        """
        return self._job(prompt, parameters).plan

    def generate(self, prompt: str, *, on_step: OnStep | None = None, **parameters: Any) -> Video:
        """Makes a video.

        Args:
            prompt: what it shows.
            on_step: called after each denoising step. What it raises stops the run; raise `CancelledError` to cancel.
            parameters: the other fields of `VideoRequest`.

        Raises:
            RequestError: a value that cannot be served.
            NumericalError: a step gave NaN or Inf.
            OutOfMemoryError: the backend ran out of memory.
        """
        stream = self.stream(prompt, on_step=on_step, **parameters)
        return Video(np.concatenate(list(stream)), stream.plan)

    def stream(self, prompt: str, *, on_step: OnStep | None = None, **parameters: Any) -> FrameStream:
        """Like `generate`, but gives the frames as they are decoded: iterate over it for uint8 `[n, H, W, 3]`.

        Memory does not grow with the number of frames. Nothing runs before the first chunk is asked for.
        """
        return FrameStream(self._graphs, self._job(prompt, parameters), on_step)

    def close(self) -> None:
        """Stops what runs, frees the graphs and their memory. Closing twice does nothing."""
        self._graphs.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _job(self, prompt: str, parameters: dict[str, Any]) -> Job:
        request = _build(VideoRequest, {"prompt": prompt, **parameters})
        return make_job(request, self.options, self.bundle, self._backend, self._family, self._tokenizer)


@dataclass(frozen=True)
class Video:
    """A finished video: `frames` uint8 `[T, H, W, 3]`, and the plan that made it."""

    frames: Frames
    plan: Plan

    def save(self, path: Path | str, **options: Any) -> Path:
        """Writes the video under its name once it is whole; the ending chooses the format.

        Args:
            path: `.mp4`, `.webm`, `.gif`, `.npy`, or a folder name for PNGs.
            options: the fields of `OutputOptions`.

        Raises:
            OutputError: unknown ending or codec, no permission, no space.
        """
        from .video import write_video

        return write_video(path, iter([self.frames]), self.plan, **options)


class FrameStream:
    """The frames of one video, chunk by chunk, and what is known of it meanwhile."""

    def __init__(self, graphs: LoadedGraphs, job: Job, on_step: OnStep | None) -> None:
        self.plan = job.plan
        self.times = StageTimes()
        self._chunks = self._run(graphs, job, on_step)

    def __iter__(self) -> Iterator[Frames]:
        return self._chunks

    def __next__(self) -> Frames:
        return next(self._chunks)

    def close(self) -> None:
        """Gives up: frees what the unfinished video holds."""
        self._chunks.close()

    def _run(self, graphs: LoadedGraphs, job: Job, on_step: OnStep | None) -> Generator[Frames]:
        started = time.perf_counter()
        with graphs.use("text_encoder", job.plan) as run:
            feeds = {"input_ids": job.tokens.input_ids, "attention_mask": job.tokens.attention_mask}
            prompt_embeds = run(feeds)["prompt_embeds"].numpy()
        self.times.add("text_encoder", started)

        started = time.perf_counter()
        latents = denoise(graphs, job, prompt_embeds, on_step)
        self.times.add("denoiser", started)

        started = time.perf_counter()
        for chunk in decode(graphs, job.plan, latents):
            self.times.add("vae_decoder", started)
            yield chunk
            started = time.perf_counter()


def denoise(graphs: LoadedGraphs, job: Job, prompt_embeds: NDArray[Any], on_step: OnStep | None) -> NDArray[np.float32]:
    """Noise to latents f32 `[C, F, h, w]`: one graph call a step, or one a step and guidance branch.

    Raises:
        NumericalError: a step gave NaN or Inf.
    """
    plan, schedule = job.plan, job.schedule
    host_state = np.zeros((schedule.state_rows, *plan.latents_shape), np.float32)
    host_state[0] = standard_normal(plan.seed, (1, *plan.latents_shape))[0]
    weights = np.asarray(plan.guidance_weights, np.float32)
    calls = [slice(i, i + plan.branches_per_call) for i in range(0, len(weights), plan.branches_per_call)]
    keep = np.eye(schedule.state_rows, dtype=np.float32)
    feeds: dict[str, Any] = {"state": host_state, "latents": host_state[0]}
    with graphs.use("denoiser", plan) as run:
        for number, step in enumerate(schedule.steps, start=1):
            feeds |= {"timestep": np.asarray([step.timestep], np.float32), "solver_b": step.solver_b}
            for branches in calls:
                feeds |= {
                    "prompt_embeds": prompt_embeds[branches],
                    "guidance_weights": weights[branches],
                    # The step is linear in the velocity: later branches only add theirs to what the first left.
                    "solver_a": step.solver_a if branches.start == 0 else keep,
                }
                outputs = run(feeds)
                feeds["state"] = outputs["next_state"]
                _check_peak(float(outputs["velocity_peak"].numpy()), number, plan)
            feeds["latents"] = latents = outputs["next_state"].row(0)
            if on_step is not None:
                preview = partial(_preview, latents, graphs.bundle)
                on_step(StepEvent(number, len(schedule.steps), preview))
        return latents.numpy()


def decode(graphs: LoadedGraphs, plan: Plan, latents: NDArray[np.float32]) -> Iterator[Frames]:
    """Latents `[C, F, h, w]` to frames, one latent frame at a time; the caches pass from chunk to chunk."""
    caches: dict[str, Tensor] = {}
    with ExitStack() as in_use:  # a cache is valid while the graph that made it is open
        for index in range(latents.shape[1]):
            if index < 2:
                run = in_use.enter_context(graphs.use("vae_decoder_next" if index else "vae_decoder_first", plan))
            outputs = run({"latents": latents[None, :, index : index + 1], **caches})
            frames = outputs.pop("frames").numpy()
            # A graph may not give an output the name of an input, so "next_cache_0" becomes "cache_0".
            caches = {name.removeprefix("next_"): value for name, value in outputs.items()}
            yield frames


def _preview(latents: Tensor, bundle: Bundle) -> Frames | None:
    return latents_to_rgb(latents.numpy(), bundle.manifest.preview)


def _check_peak(peak: float, number: int, plan: Plan) -> None:
    if not math.isfinite(peak):
        raise NumericalError(
            f"step {number} of {plan.num_inference_steps} gave {peak}: the network overflowed in {plan.precision}. "
            "Try another --precision or seed, or export the checkpoint again in fp32"
        )


def _build(kind: type[Parameters], values: dict[str, Any]) -> Parameters:
    known = [parameter.name for parameter in fields(kind)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise RequestError(f"unknown parameter {', '.join(unknown)}; there are: {', '.join(known)}")
    return kind(**values)
