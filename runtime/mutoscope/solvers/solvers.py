"""Solvers as lists of small matrices. Knows the update rules of the flow-matching solvers; knows nothing of latents,
graphs or devices.

A solver here is run once on coefficients instead of on latents: every quantity is a float64 vector over the `K` state
rows before the step and, last, the velocity `v`. The rows of the next state, stacked, are then the step's matrix.

Sources: Zhao et al. 2023, "UniPC" (arXiv 2302.04867), its B(h) variants; Lu et al. 2022, "DPM-Solver++" (arXiv
2211.01095), its second-order multistep solver; Luo et al. 2023, "LCM" (arXiv 2310.04378), its multistep sampling; the
order of the first and last steps as in Diffusers' schedulers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .levels import dpmpp_levels, euler_levels, log_snr, unipc_levels
from .options import SIGMAS, WHOLE_TIMESTEPS, Config, ScheduleError, checked_options, checked_sigmas

Vector = NDArray[np.float64]  # [K + 1]: what a quantity owes to each state row and to v

MAX_STATE_ROWS = 8  # that denoisers take, and engines are built for: 8 steps of `lcm`; third order UniPC has 5


@dataclass(frozen=True, eq=False)
class Step:
    """One call of the denoiser: `next_state = solver_a @ state + solver_b (outer) v`."""

    timestep: float
    """What the network is given, in units of training timesteps."""
    sigma: float
    """Noise level of row 0 before the step, from 0 (clean) to 1 (noise)."""
    solver_a: NDArray[np.float32]
    """[K, K]"""
    solver_b: NDArray[np.float32]
    """[K]"""
    role: str = "denoiser"
    """The graph that is called: of several experts, the one for this timestep."""
    guidance_weights: tuple[float, ...] = (1.0,)
    """One a branch: (negative, positive), or (1,)."""


@dataclass(frozen=True)
class Schedule:
    """All calls of the denoiser for one video."""

    name: str
    steps: tuple[Step, ...]
    state_rows: int
    """K. Row 0 is what the network sees."""
    noise_rows: int = 1
    """As many rows, from the first, start as noise, each drawn after the one before. The others may start as zeros."""
    skipped: int = 0
    """As many steps come before the first of these, and are not made: the video begins from another one."""

    @property
    def first_steps(self) -> dict[str, int]:
        """The number of the step, counted from 1 with those that are skipped, with which each denoiser begins."""
        numbers: dict[str, int] = {}
        for number, step in enumerate(self.steps, start=1 + self.skipped):
            numbers.setdefault(step.role, number)
        return numbers


def _coefficients(state_rows: int) -> tuple[list[Vector], Vector]:
    """The state rows and v, each as itself."""
    *state, v = np.eye(state_rows + 1)
    return state, v


def _step(timestep: np.float64, sigma: np.float64, next_state: Sequence[Vector]) -> Step:
    matrix = np.stack(next_state).astype(np.float32)
    matrix.setflags(write=False)
    return Step(float(timestep), float(sigma), matrix[:, :-1], matrix[:, -1])


def _euler(options: Config, count: int, skipped: int) -> Schedule:
    timesteps, sigmas = euler_levels(options, count)
    (x,), v = _coefficients(1)
    steps = (_step(timesteps[i], sigmas[i], [x + (sigmas[i + 1] - sigmas[i]) * v]) for i in range(skipped, count))
    return Schedule("euler", tuple(steps), 1, skipped=skipped)


def _lcm(options: Config, count: int, skipped: int) -> Schedule:
    """State: the sample, and the noise to which each step but the last returns from the clean sample it predicts."""
    rows = count - skipped
    if rows > MAX_STATE_ROWS:  # before their matrices, which grow with the cube of the steps
        raise ScheduleError(
            f"lcm needs a row of solver state for each of its {rows} steps, and denoisers take {MAX_STATE_ROWS} rows; "
            f"ask for at most {MAX_STATE_ROWS} steps"
        )
    timesteps, sigmas = euler_levels(options, count)
    if options.get(WHOLE_TIMESTEPS):
        timesteps = np.rint(timesteps)
    (x, *noises), v = _coefficients(rows)
    steps = []
    for i in range(skipped, count):
        renewed = (1 - sigmas[i + 1]) * (x - sigmas[i] * v)
        if i < count - 1:
            renewed = renewed + sigmas[i + 1] * noises[i - skipped]
        steps.append(_step(timesteps[i], sigmas[i], [renewed, *noises]))
    return Schedule("lcm", tuple(steps), rows, noise_rows=rows, skipped=skipped)


def _dpmpp_2m(options: Config, count: int, skipped: int) -> Schedule:
    """State: the sample, and the clean sample predicted one step before if the order is 2."""
    timesteps, sigmas = dpmpp_levels(options, count)
    order, is_heun = options.get("solver_order", 2), options.get("solver_type") == "heun"
    first_order_last = (
        options.get("euler_at_final", False)
        or options.get("final_sigmas_type", "zero") == "zero"
        or (options.get("lower_order_final", True) and count < 15)
    )
    (x, *history), v = _coefficients(order)
    steps = []
    for i in range(skipped, count):
        sigma, target = sigmas[i], sigmas[i + 1]
        clean = x - sigma * v
        h = log_snr(target) - log_snr(sigma)
        decay = np.expm1(-h)
        moved = target / sigma * x - (1 - target) * decay * clean
        if order == 2 and i > skipped and not (i == count - 1 and first_order_last):
            slope = (clean - history[0]) * h / (log_snr(sigma) - log_snr(sigmas[i - 1]))
            moved = moved + (1 - target) * ((decay / h + 1) if is_heun else -0.5 * decay) * slope
        steps.append(_step(timesteps[i], sigma, [moved, clean][:order]))
    return Schedule("dpmpp_2m", tuple(steps), order, skipped=skipped)


def _unipc(options: Config, count: int, skipped: int) -> Schedule:
    """State: the predicted sample, the corrected one a step before, and `order` earlier clean samples, newest first."""
    timesteps, sigmas = unipc_levels(options, count)
    max_order, is_bh1 = options.get("solver_order", 2), options.get("solver_type") == "bh1"
    uncorrected = options.get("disable_corrector") or ()
    (x, corrected_before, *history), v = _coefficients(2 + max_order)
    order = 0
    steps = []
    for i in range(skipped, count):
        clean = x - sigmas[i] * v
        corrected = x
        if i > skipped and i - 1 not in uncorrected:  # with the order of the prediction that it corrects
            past = sigmas[i - order : i][::-1]
            corrected = _unified_update(corrected_before, history[:order], past, sigmas[i], is_bh1, clean)
        order = min(max_order, i - skipped + 1)
        if options.get("lower_order_final", True):
            order = min(order, count - i)
        cleans, past = [clean, *history[:-1]], sigmas[i + 1 - order : i + 1][::-1]
        predicted = _unified_update(corrected, cleans[:order], past, sigmas[i + 1], is_bh1)
        steps.append(_step(timesteps[i], sigmas[i], [predicted, corrected, *cleans]))
    return Schedule("unipc", tuple(steps), 2 + max_order, skipped=skipped)


def _unified_update(
    x: Vector,
    cleans: Sequence[Vector],
    sigmas: Vector,
    target: np.float64,
    is_bh1: bool,
    target_clean: Vector | None = None,
) -> Vector:
    """UniP from the sample `x` at sigmas[0] to the level `target`; UniC where the clean sample at `target` is known.

    `cleans` were predicted at `sigmas`, newest first.
    """
    start = log_snr(sigmas[0])
    h = start - log_snr(target)  # negative: the data prediction's sign
    ratios = [(start - log_snr(sigma)) / h for sigma in sigmas[1:]]
    slopes = [(clean - cleans[0]) / ratio for clean, ratio in zip(cleans[1:], ratios, strict=True)]
    if target_clean is not None:
        ratios, slopes = [*ratios, np.float64(1)], [*slopes, target_clean - cleans[0]]
    moved = target / sigmas[0] * x - (1 - target) * np.expm1(h) * cleans[0]
    if slopes:
        scale = h if is_bh1 else np.expm1(h)
        moved = moved - (1 - target) * scale * (_slope_weights(ratios, h, scale) @ np.stack(slopes))
    return np.asarray(moved)


def _slope_weights(ratios: Sequence[np.float64], h: np.float64, scale: np.float64) -> Vector:
    """The weights rho that match the Taylor terms of the exact integral; for one slope, the simpler 1/2."""
    if len(ratios) == 1:
        return np.array([0.5])
    phi, moments = np.expm1(h) / h - 1, []
    for k in range(1, len(ratios) + 1):
        moments.append(phi * math.factorial(k) / scale)
        phi = phi / h - 1 / math.factorial(k + 1)
    try:
        return np.asarray(np.linalg.solve(np.vander(ratios, increasing=True).T, moments))
    except np.linalg.LinAlgError:  # two equal levels, or an infinite h: `build_schedule` reports the step
        return np.full(len(ratios), np.nan)


SCHEDULERS: dict[str, Callable[[Config, int, int], Schedule]] = {
    "unipc": _unipc,
    "euler": _euler,
    "dpmpp_2m": _dpmpp_2m,
    "lcm": _lcm,
}


def build_schedule(
    name: str, config: Config, num_inference_steps: int, sigmas: Sequence[float] | None = None, *, skipped: int = 0
) -> Schedule:
    """The matrices of solver `name` for the noise levels of `config`.

    `config` is the content of Diffusers' scheduler_config.json, of any of the classes in `CLASSES`. An option under the
    solver's own name wins over the same option under another solver's name (`shift` and `flow_shift`). `sigmas` are
    noise levels to use in place of evenly spaced ones: one a step, before the shift, as Diffusers' `set_timesteps`
    takes them. The first `skipped` steps are left out: solvers that remember begin anew at the one that follows.

    Raises:
        ScheduleError: the name is unknown, or an option, the number of steps or the levels cannot be honoured.
    """
    if name not in SCHEDULERS:
        raise ScheduleError(f"scheduler is {name!r}; supported: {', '.join(SCHEDULERS)}")
    if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int) or num_inference_steps < 1:
        raise ScheduleError(f"num_inference_steps must be an integer of at least 1; got {num_inference_steps!r}")
    levels = None if sigmas is None else checked_sigmas(name, sigmas, num_inference_steps)
    options = {**checked_options(name, config), SIGMAS: levels}
    with np.errstate(divide="ignore", invalid="ignore"):  # a level of 0 has an infinite log-SNR, and that is in order
        schedule = SCHEDULERS[name](options, num_inference_steps, skipped)
    for number, step in enumerate(schedule.steps, start=1 + skipped):
        if not (np.isfinite(step.solver_a).all() and np.isfinite(step.solver_b).all()):
            raise ScheduleError(
                f"{name} with these options divides by zero in step {number} of {num_inference_steps}, from noise "
                f"level {step.sigma:g}; set lower_order_final to true, or use a smaller shift"
            )
    return schedule
