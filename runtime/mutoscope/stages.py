"""The two long stages: noise into latents, latents into frames.

Knows the names and order of the graphs' inputs and outputs. Knows nothing of requests, or of who takes the frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from mutoscope_engines.session import Tensor
from numpy.typing import NDArray

from .bundle import Bundle
from .errors import NumericalError
from .loaded import LoadedGraphs
from .noise import standard_normals
from .plan import Job, Plan
from .preview import latents_to_rgb

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class StepEvent:
    """What `on_step` is told after each denoising step that calls the network. `step` counts from 1 to `total`."""

    step: int
    total: int
    preview: Callable[[], Frames | None]
    """Frames uint8 `[F, h, w, 3]` from the latents as they are, or `None` where the bundle has no preview map.
    To be called before `on_step` returns: the next step takes the latents' place."""


OnStep = Callable[[StepEvent], object]


def denoise(graphs: LoadedGraphs, job: Job, prompt_embeds: NDArray[Any], on_step: OnStep | None) -> NDArray[np.float32]:
    """Noise to latents f32 `[C, F, h, w]`: one graph call a step, or one a step and guidance branch.

    Raises:
        NumericalError: a step gave NaN or Inf.
    """
    plan, schedule = job.plan, job.schedule
    host_state = np.zeros((schedule.state_rows, *plan.latents_shape), np.float32)
    host_state[: schedule.noise_rows] = standard_normals(plan.seed, plan.latents_shape, schedule.noise_rows)
    weights = np.asarray(plan.guidance_weights, np.float32)
    calls = [slice(i, i + plan.branches_per_call) for i in range(0, len(weights), plan.branches_per_call)]
    keep = np.eye(schedule.state_rows, dtype=np.float32)
    feeds: dict[str, Any] = {"state": host_state, "latents": host_state[0]}
    with graphs.use("denoiser", plan) as run:
        for number, step in enumerate(schedule.steps, start=1):
            feeds |= {"timestep": np.asarray([step.timestep], np.float32), "solver_b": step.solver_b}
            for branches in calls:
                # The step is linear in the velocity: later branches only add theirs to what the first left.
                feeds["solver_a"] = step.solver_a if branches.start == 0 else keep
                if number == 1 or len(calls) > 1:
                    feeds |= {"prompt_embeds": prompt_embeds[branches], "guidance_weights": weights[branches]}
                outputs = run(feeds)
                _check_peak(float(outputs["velocity_peak"].numpy()), number, plan)
                feeds = {"state": outputs["next_state"]}  # what is not fed again stays as it is
            feeds["latents"] = latents = outputs["next_state"].row(0)
            if on_step is not None:
                preview = partial(_preview, latents, graphs.bundle)
                on_step(StepEvent(number, len(schedule.steps), preview))
        return latents.numpy()


def decode(graphs: LoadedGraphs, plan: Plan, latents: NDArray[np.float32]) -> Iterator[Tensor]:
    """Latents `[C, F, h, w]` to frames, one latent frame at a time; the caches pass from chunk to chunk.

    Frames are where the backend keeps them, and valid until the next are asked for.
    """
    caches: dict[str, Tensor] = {}
    with ExitStack() as first, ExitStack() as following:
        for index in range(latents.shape[1]):
            if index == 0:
                run = first.enter_context(graphs.use("vae_decoder_first", plan))
            elif index == 1:
                run = following.enter_context(graphs.use("vae_decoder_next", plan))
            outputs = run({"latents": latents[None, :, index : index + 1], **caches})
            if index == 1:
                first.close()  # its caches have been taken over
            frames = outputs.pop("frames")
            # A graph may not give an output the name of an input, so "next_cache_0" becomes "cache_0".
            caches = {name.removeprefix("next_"): value for name, value in outputs.items()}
            yield frames


def _preview(latents: Tensor, bundle: Bundle) -> Frames | None:
    return latents_to_rgb(latents.numpy(), bundle.manifest.preview)


def _check_peak(peak: float, number: int, plan: Plan) -> None:
    if not math.isfinite(peak):
        raise NumericalError(
            f"step {number} of {len(plan.timesteps)} gave {peak}: the network overflowed in {plan.precision}. "
            "Try another --precision or seed, or export the checkpoint again in fp32"
        )
