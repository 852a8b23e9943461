"""Noise into latents: one graph call a step, or one a step and guidance branch.

Knows steps, and that a denoiser takes `LOOP_INPUTS` in each and everything else once. Knows nothing of requests, or of
what the other inputs mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
from mutoscope_engines.session import Host, Tensor
from mutoscope_engines.symbols import sized

from ..bundle.bundle import Bundle
from ..conditions.base import CLEAN
from ..errors import NumericalError
from ..output.frames import Frames
from ..planning.plan import Job, Plan
from ..solvers.noise import NormalStream
from ..solvers.solvers import Step
from .loaded import LoadedGraphs, Run
from .preview import latents_to_rgb


@dataclass(frozen=True)
class StepEvent:
    """What `on_step` is told after each denoising step that calls the network. `step` counts from 1 to `total`."""

    step: int
    total: int
    preview: Callable[[], Frames | None]
    """Frames uint8 `[F, h, w, 3]` from the latents as they are, or `None` where the bundle has no preview map.
    To be called before `on_step` returns: the next step takes the latents' place."""


OnStep = Callable[[StepEvent], object]


def denoise(graphs: LoadedGraphs, job: Job, conditions: Mapping[str, Host], on_step: OnStep | None) -> Host:
    """Noise to latents f32 `[C, F, h, w]`.

    Args:
        conditions: what the video follows, as inputs of the denoiser by name; and `CLEAN`, if it begins from a clip.
        on_step: told after each step.

    Raises:
        NumericalError: a step gave NaN or Inf.
    """
    state, drawn = _noise(job, graphs.bundle)
    constants = {**conditions, **drawn}
    clean = constants.pop(CLEAN, None)
    if clean is not None:
        state[0] = _noised(clean, state[0], job.schedule.steps[0].sigma)
    numbered = enumerate(job.schedule.steps, start=1)
    latents: Host = state[0]
    for role, steps in groupby(numbered, key=lambda numbered: numbered[1].role):
        with graphs.use(role, job.plan) as run:
            fed = _Constants(graphs.bundle, role, {**constants, **job.loras.feeds(role)})
            for number, outputs in _steps(run, steps, state, job.plan, fed):
                row = outputs["next_state"].row(0)
                if on_step is not None:
                    preview = partial(_preview, row, graphs.bundle, job.plan.geometry.num_frames)
                    on_step(StepEvent(number, len(job.schedule.steps), preview))
            if number < len(job.schedule.steps):
                state = outputs["next_state"].numpy()  # another expert goes on from it
            latents = row.numpy()
    return latents


def _noise(job: Job, bundle: Bundle) -> tuple[Host, dict[str, Host]]:
    """The state before the first step, f32 `[K, C, F, h, w]`, and what else is drawn from the seed, by input."""
    plan, schedule, stream = job.plan, job.schedule, NormalStream(job.plan.seed)
    symbols = plan.sizes.symbols(schedule.steps[0].role, plan.sizes.branches, plan.decoder_window)
    drawn = {draw.input: stream.draw(sized(draw.shape, symbols)) for draw in bundle.manifest.draws}
    state = np.zeros((schedule.state_rows, *plan.geometry.latents_shape), np.float32)
    state[0] = drawn.pop("latents")
    for row in range(1, schedule.noise_rows):  # the noise that a solver returns to comes after all that a model draws
        state[row] = stream.draw(plan.geometry.latents_shape)
    return state, drawn


def _noised(clean: Host, noise: Host, sigma: float) -> Host:
    """Latents at a noise level, as `add_noise` and `scale_noise` of the reference compute them, in float32."""
    level = np.float32(sigma)
    noised: Host = (np.float32(1) - level) * clean + level * noise
    return noised


class _Constants:
    """The inputs of one denoiser that stay the same for a video, branch by branch or for all of them."""

    def __init__(self, bundle: Bundle, role: str, values: Mapping[str, Host]) -> None:
        by_branch = {
            tensor.name
            for graph in bundle.manifest.graphs
            for tensor in graph.inputs
            if graph.role == role and tensor.shape[:1] == ("B",)
        }
        self.shared = {name: value for name, value in values.items() if name not in by_branch}
        self._by_branch = {name: value for name, value in values.items() if name in by_branch}

    def of(self, branches: slice, total: int) -> dict[str, Host]:
        """Those that have a row for each branch: the rows of these branches, out of `total`.

        An expert without guidance takes the last row, that of the prompt.
        """
        return {name: value[len(value) - total :][branches] for name, value in self._by_branch.items()}


def _steps(
    run: Run, steps: Iterator[tuple[int, Step]], state: Host, plan: Plan, constants: _Constants
) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
    """Runs the steps of one expert, numbered; gives what each made, valid until the next."""
    keep = np.eye(len(state), dtype=np.float32)
    feeds: dict[str, Host | Tensor] = {"state": state, "latents": state[0], **constants.shared}
    weights_before: tuple[float, ...] = ()
    for number, step in steps:
        weights = np.asarray(step.guidance_weights, np.float32)
        at_once = plan.option_of(step.role).branches_per_call
        calls = [slice(i, i + at_once) for i in range(0, len(weights), at_once)]
        feeds |= {"timestep": np.asarray([step.timestep], np.float32), "solver_b": step.solver_b}
        for branches in calls:
            # The step is linear in the velocity: later branches only add theirs to what the first left.
            feeds["solver_a"] = step.solver_a if branches.start == 0 else keep
            if not weights_before or len(calls) > 1:
                feeds |= constants.of(branches, len(weights))
            if step.guidance_weights != weights_before or len(calls) > 1:
                feeds["guidance_weights"] = weights[branches]
            outputs = run(feeds)
            _check_peak(float(outputs["velocity_peak"].numpy()), number, plan)
            feeds = {"state": outputs["next_state"]}  # what is not fed again stays as it is
        weights_before = step.guidance_weights
        yield number, outputs
        feeds["latents"] = outputs["next_state"].row(0)


def _preview(latents: Tensor, bundle: Bundle, num_frames: int) -> Frames | None:
    """Without the latents of reference pictures, which come first."""
    shown = bundle.manifest.frames.latent_frames(num_frames)
    return latents_to_rgb(latents.numpy()[:, -shown:], bundle.manifest.preview)


def _check_peak(peak: float, number: int, plan: Plan) -> None:
    if not math.isfinite(peak):
        raise NumericalError(
            f"step {number} of {len(plan.schedule.timesteps)} gave {peak}: the network overflowed in "
            f"{plan.placements.precision}. Try another precision or seed, or export the checkpoint again in fp32"
        )
