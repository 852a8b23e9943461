"""Solvers as lists of small matrices. Knows the noise levels, timesteps and update rules of the flow-matching solvers,
and the names that Diffusers gives their options. Knows nothing of latents, graphs or devices.

A solver here is run once on coefficients instead of on latents: every quantity is a float64 vector over the `K` state
rows before the step and, last, the velocity `v`. The rows of the next state, stacked, are then the step's matrix.

Sources: Zhao et al. 2023, "UniPC" (arXiv 2302.04867), its B(h) variants; Lu et al. 2022, "DPM-Solver++" (arXiv
2211.01095), its second-order multistep solver; Luo et al. 2023, "LCM" (arXiv 2310.04378), its multistep sampling; noise
levels, warm-up and the last step as in Diffusers' schedulers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Config = Mapping[str, Any]
Vector = NDArray[np.float64]  # [K + 1]: what a quantity owes to each state row and to v

MAX_STATE_ROWS = 8  # that denoisers take, and engines are built for: 8 steps of `lcm`; third order UniPC has 5


class ScheduleError(ValueError):
    """A scheduler, or an option of one, that cannot be honoured."""


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


@dataclass(frozen=True)
class Schedule:
    name: str
    steps: tuple[Step, ...]
    state_rows: int
    """K. Row 0 is what the network sees."""
    noise_rows: int = 1
    """As many rows, from the first, start as noise, each drawn after the one before. The others may start as zeros."""


def build_schedule(
    name: str, config: Config, num_inference_steps: int, sigmas: Sequence[float] | None = None
) -> Schedule:
    """The matrices of solver `name` for the noise levels of `config`.

    `config` is the content of Diffusers' scheduler_config.json, of any of the classes in `CLASSES`. An option under the
    solver's own name wins over the same option under another solver's name (`shift` and `flow_shift`). `sigmas` are
    noise levels to use in place of evenly spaced ones: one a step, before the shift, as Diffusers' `set_timesteps`
    takes them.

    Raises ScheduleError for an unknown name, and for an option, number of steps or levels that cannot be honoured.
    """
    if name not in SCHEDULERS:
        raise ScheduleError(f"scheduler is {name!r}; supported: {', '.join(SCHEDULERS)}")
    if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int) or num_inference_steps < 1:
        raise ScheduleError(f"num_inference_steps must be an integer of at least 1; got {num_inference_steps!r}")
    levels = None if sigmas is None else _checked_sigmas(name, sigmas, num_inference_steps)
    options = {**_checked_options(name, config), SIGMAS: levels}
    with np.errstate(divide="ignore", invalid="ignore"):  # a level of 0 has an infinite log-SNR, and that is in order
        schedule = SCHEDULERS[name](options, num_inference_steps)
    for index, step in enumerate(schedule.steps):
        if not (np.isfinite(step.solver_a).all() and np.isfinite(step.solver_b).all()):
            raise ScheduleError(
                f"{name} with these options divides by zero in step {index + 1} of {num_inference_steps}, from noise "
                f"level {step.sigma:g}; set lower_order_final to true, or use a smaller shift"
            )
    return schedule


def from_diffusers(config: Config) -> str:
    """The name, in `SCHEDULERS`, of the solver that a scheduler_config.json asks for.

    Raises ScheduleError if its class or one of its options cannot be honoured.
    """
    name = CLASSES[_checked_class(config.get("_class_name"))]
    if name == "euler" and config.get("stochastic_sampling"):
        name = "lcm"  # the same arithmetic under another name
    _checked_options(name, config)
    return name


# ---- options -------------------------------------------------------------------------------------

CLASSES = {
    "UniPCMultistepScheduler": "unipc",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "FlowMatchLCMScheduler": "lcm",
}
WHOLE_TIMESTEPS = "_whole_timesteps"  # an option of `lcm` that Diffusers has not: the network is given whole numbers
SIGMAS = "sigmas"  # among checked options: the levels that the caller gave, or None

# What Diffusers assumes in a config that leaves the option out; the flow-matching class knows only flows.
_CLASS_DEFAULTS: dict[str, Config] = {
    "UniPCMultistepScheduler": {"use_flow_sigmas": False, "prediction_type": "epsilon"},
    "DPMSolverMultistepScheduler": {"use_flow_sigmas": False, "prediction_type": "epsilon"},
}

_OFF = (False, None)
_ALLOWED_ALWAYS: dict[str, tuple[Any, ...]] = {
    "use_flow_sigmas": (True,),
    "prediction_type": ("flow_prediction",),
    "thresholding": _OFF,
    "use_dynamic_shifting": _OFF,
    "use_karras_sigmas": _OFF,
    "use_exponential_sigmas": _OFF,
    "use_beta_sigmas": _OFF,
    "use_lu_lambdas": _OFF,
    "invert_sigmas": _OFF,
    "rescale_betas_zero_snr": _OFF,
    "trained_betas": (None,),
    "solver_p": (None,),
    "predict_x0": (True,),
    "lower_order_final": (True, False),
    "euler_at_final": (True, False),
}
_ENDS = ("zero", "sigma_min")
_ALLOWED: dict[str, dict[str, tuple[Any, ...]]] = {
    # A solver_type of the other multistep solver means the default, as in Diffusers.
    "unipc": {
        "solver_order": (1, 2, 3),
        "solver_type": ("bh1", "bh2", "midpoint", "heun", "logrho"),
        "final_sigmas_type": _ENDS,
    },
    "euler": {"final_sigmas_type": ("zero",), "stochastic_sampling": _OFF},
    "lcm": {"final_sigmas_type": ("zero",), "scale_factors": (None, [])},
    "dpmpp_2m": {
        "algorithm_type": ("dpmsolver++",),
        "solver_order": (1, 2),
        "solver_type": ("midpoint", "heun", "bh1", "bh2", "logrho"),
        "final_sigmas_type": _ENDS,
        "beta_schedule": ("linear", "scaled_linear"),
        "shift_terminal": (None, 0),
    },
}
_NUMBERS = {"num_train_timesteps", "flow_shift", "shift", "shift_terminal", "beta_start", "disable_corrector"}
# Without effect on a flow with the options above, or on the solver for which they are not listed above.
_INERT = {
    *("beta_end", "beta_schedule", "timestep_spacing", "steps_offset", "dynamic_thresholding_ratio", "time_shift_type"),
    *("sample_max_value", "lambda_min_clipped", "variance_type", "sigma_min", "sigma_max", "base_shift", "max_shift"),
    *("base_image_seq_len", "max_image_seq_len", "algorithm_type", "solver_order", "solver_type", "upscale_mode"),
    "stochastic_sampling",
}


def _checked_class(class_name: Any) -> str:
    if class_name not in tuple(CLASSES):  # compared, not hashed: JSON may hold a list here
        raise ScheduleError(f"_class_name of the scheduler is {class_name!r}; supported: {', '.join(CLASSES)}")
    return str(class_name)


def _checked_options(name: str, config: Config) -> Config:
    """`config` with the defaults of its class, or ScheduleError."""
    class_name = config.get("_class_name")
    defaults = _CLASS_DEFAULTS.get(_checked_class(class_name), {}) if class_name is not None else {}
    options = {**defaults, **config}
    allowed = _ALLOWED_ALWAYS | _ALLOWED[name]
    for option, value in options.items():
        if option in allowed:
            if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed[option]):
                supported = ", ".join(repr(each) for each in allowed[option])
                raise ScheduleError(f"scheduler option {option} is {value!r}; {name} supports: {supported}")
        elif not (option in _NUMBERS | _INERT or option.startswith("_") or value in _OFF):
            known = ", ".join(sorted(_NUMBERS | _INERT | set(allowed)))
            raise ScheduleError(f"scheduler option {option} is {value!r}, and {name} does not know it; known: {known}")
    _check_numbers(options)
    return options


def _check_numbers(options: Config) -> None:
    count = options.get("num_train_timesteps", 1000)
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise ScheduleError(f"scheduler option num_train_timesteps must be an integer of at least 2; got {count!r}")
    for option, limit in (("flow_shift", math.inf), ("shift", math.inf), ("shift_terminal", 1.0), ("beta_start", 1.0)):
        value = options.get(option)
        if value is None or (option == "shift_terminal" and not value):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < limit:
            raise ScheduleError(f"scheduler option {option} must be a number above 0 and below {limit}; got {value!r}")
    uncorrected = options.get("disable_corrector") or []
    if not isinstance(uncorrected, list | tuple) or not all(type(index) is int for index in uncorrected):
        raise ScheduleError(f"scheduler option disable_corrector must be a list of step numbers; got {uncorrected!r}")


def _checked_sigmas(name: str, sigmas: Sequence[float], count: int) -> Vector:
    """Levels [count], falling from at most 1 to above 0."""
    if name not in TAKES_SIGMAS:
        raise ScheduleError(f"{name} takes no sigmas; schedulers that do: {', '.join(TAKES_SIGMAS)}")
    levels = np.asarray(sigmas, np.float64)
    if levels.ndim != 1 or not (np.diff(levels, prepend=1 + 1e-9, append=0) < 0).all():
        raise ScheduleError(f"sigmas must fall from at most 1 to above 0; got {', '.join(f'{x:g}' for x in sigmas)}")
    if len(levels) != count:
        raise ScheduleError(
            f"there are {len(levels)} sigmas for {count} steps; give one for each step, or ask for {len(levels)} steps"
        )
    return levels


def flow_shift_of(name: str, options: Config) -> float:
    """The shift that solver `name` uses: under the solver's own name for it, else under the other's, else none (1)."""
    names = ("shift", "flow_shift") if name in ("euler", "lcm") else ("flow_shift", "shift")
    return next((float(options[key]) for key in names if options.get(key) is not None), 1.0)


# ---- noise levels --------------------------------------------------------------------------------


def _shifted(sigmas: Any, shift: float) -> Any:
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def _stretched_to_terminal(sigmas: Vector, options: Config) -> Vector:
    """1 - sigma, scaled so that the last level is `shift_terminal`."""
    terminal = options.get("shift_terminal")
    if not terminal:
        return sigmas
    signal = 1 - sigmas
    if signal[-1] <= 0:
        raise ScheduleError(f"scheduler option shift_terminal is {terminal!r} and needs at least 2 inference steps")
    return np.asarray(1 - signal / (signal[-1] / (1 - terminal)))


def _unipc_levels(options: Config, count: int) -> tuple[Vector, Vector]:
    """Timesteps [count] and sigmas [count + 1]."""
    train_steps = options.get("num_train_timesteps", 1000)
    given = options[SIGMAS]
    sigmas = np.linspace(1, 1 / train_steps, count + 1)[:-1] if given is None else given
    sigmas = _shifted(sigmas, flow_shift_of("unipc", options))
    sigmas = _stretched_to_terminal(sigmas, options)
    if abs(sigmas[0] - 1) < 1e-6:
        sigmas[0] -= 1e-6  # log-SNR stays finite
    last = sigmas[-1] if options.get("final_sigmas_type") == "sigma_min" else 0.0
    return np.trunc(sigmas * train_steps), _as_stored(sigmas, last)


def _euler_levels(options: Config, count: int) -> tuple[Vector, Vector]:
    """Timesteps [count] and sigmas [count + 1]. As in Diffusers both ends are shifted twice, at first in float32."""
    train_steps, shift = options.get("num_train_timesteps", 1000), flow_shift_of("euler", options)
    low, high = (float(_shifted(np.float32(level) / np.float32(train_steps), shift)) for level in (1, train_steps))
    evenly, given = np.linspace(high * train_steps, low * train_steps, count) / train_steps, options[SIGMAS]
    sigmas = _shifted(evenly if given is None else given.astype(np.float32), shift)
    sigmas = _as_stored(_stretched_to_terminal(sigmas, options), 0.0)
    return (sigmas[:-1].astype(np.float32) * np.float32(train_steps)).astype(np.float64), sigmas


def _dpmpp_levels(options: Config, count: int) -> tuple[Vector, Vector]:
    """Timesteps [count] and sigmas [count + 1]."""
    train_steps = options.get("num_train_timesteps", 1000)
    sigmas = 1 - np.linspace(1, 1 / train_steps, count + 1)
    sigmas = np.flip(_shifted(sigmas, flow_shift_of("dpmpp_2m", options)))[:-1]
    last = 0.0
    if options.get("final_sigmas_type") == "sigma_min":  # Diffusers takes it from the betas, a flow's too, in float32
        signal = np.float32(1) - np.float32(options.get("beta_start", 1e-4))
        last = float(np.sqrt((np.float32(1) - signal) / signal))
    return np.trunc(sigmas * train_steps), _as_stored(sigmas, last)


def _as_stored(sigmas: Vector, last: float) -> Vector:
    """Diffusers keeps noise levels in float32; what is computed from them here is float64."""
    return np.append(sigmas, last).astype(np.float32).astype(np.float64)


def _log_snr(sigma: np.float64) -> np.float64:
    return np.float64(np.log(1 - sigma) - np.log(sigma))


# ---- solvers -------------------------------------------------------------------------------------


def _coefficients(state_rows: int) -> tuple[list[Vector], Vector]:
    """The state rows and v, each as itself."""
    *state, v = np.eye(state_rows + 1)
    return state, v


def _step(timestep: np.float64, sigma: np.float64, next_state: Sequence[Vector]) -> Step:
    matrix = np.stack(next_state).astype(np.float32)
    matrix.setflags(write=False)
    return Step(float(timestep), float(sigma), matrix[:, :-1], matrix[:, -1])


def _euler(options: Config, count: int) -> Schedule:
    timesteps, sigmas = _euler_levels(options, count)
    (x,), v = _coefficients(1)
    steps = (_step(timesteps[i], sigmas[i], [x + (sigmas[i + 1] - sigmas[i]) * v]) for i in range(count))
    return Schedule("euler", tuple(steps), 1)


def _lcm(options: Config, count: int) -> Schedule:
    """State: the sample, and the noise to which each step but the last returns from the clean sample it predicts."""
    if count > MAX_STATE_ROWS:  # before their matrices, which grow with the cube of the steps
        raise ScheduleError(
            f"lcm with {count} steps keeps {count} states, and denoisers take {MAX_STATE_ROWS}; "
            f"ask for at most {MAX_STATE_ROWS} steps"
        )
    timesteps, sigmas = _euler_levels(options, count)
    if options.get(WHOLE_TIMESTEPS):
        timesteps = np.rint(timesteps)
    (x, *noises), v = _coefficients(count)
    steps = []
    for i in range(count):
        renewed = (1 - sigmas[i + 1]) * (x - sigmas[i] * v)
        if i < count - 1:
            renewed = renewed + sigmas[i + 1] * noises[i]
        steps.append(_step(timesteps[i], sigmas[i], [renewed, *noises]))
    return Schedule("lcm", tuple(steps), count, noise_rows=count)


def _dpmpp_2m(options: Config, count: int) -> Schedule:
    """State: the sample, and the clean sample predicted one step before if the order is 2."""
    timesteps, sigmas = _dpmpp_levels(options, count)
    order, is_heun = options.get("solver_order", 2), options.get("solver_type") == "heun"
    first_order_last = (
        options.get("euler_at_final", False)
        or options.get("final_sigmas_type", "zero") == "zero"
        or (options.get("lower_order_final", True) and count < 15)
    )
    (x, *history), v = _coefficients(order)
    steps = []
    for i in range(count):
        sigma, target = sigmas[i], sigmas[i + 1]
        clean = x - sigma * v
        h = _log_snr(target) - _log_snr(sigma)
        decay = np.expm1(-h)
        moved = target / sigma * x - (1 - target) * decay * clean
        if order == 2 and i > 0 and not (i == count - 1 and first_order_last):
            slope = (clean - history[0]) * h / (_log_snr(sigma) - _log_snr(sigmas[i - 1]))
            moved = moved + (1 - target) * ((decay / h + 1) if is_heun else -0.5 * decay) * slope
        steps.append(_step(timesteps[i], sigma, [moved, clean][:order]))
    return Schedule("dpmpp_2m", tuple(steps), order)


def _unipc(options: Config, count: int) -> Schedule:
    """State: the predicted sample, the corrected one a step before, and `order` earlier clean samples, newest first."""
    timesteps, sigmas = _unipc_levels(options, count)
    max_order, is_bh1 = options.get("solver_order", 2), options.get("solver_type") == "bh1"
    uncorrected = options.get("disable_corrector") or ()
    (x, corrected_before, *history), v = _coefficients(2 + max_order)
    order = 0
    steps = []
    for i in range(count):
        clean = x - sigmas[i] * v
        corrected = x
        if i > 0 and i - 1 not in uncorrected:  # with the order of the prediction that it corrects
            past = sigmas[i - order : i][::-1]
            corrected = _unified_update(corrected_before, history[:order], past, sigmas[i], is_bh1, clean)
        order = min(max_order, i + 1)
        if options.get("lower_order_final", True):
            order = min(order, count - i)
        cleans, past = [clean, *history[:-1]], sigmas[i + 1 - order : i + 1][::-1]
        predicted = _unified_update(corrected, cleans[:order], past, sigmas[i + 1], is_bh1)
        steps.append(_step(timesteps[i], sigmas[i], [predicted, corrected, *cleans]))
    return Schedule("unipc", tuple(steps), 2 + max_order)


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
    start = _log_snr(sigmas[0])
    h = start - _log_snr(target)  # negative: the data prediction's sign
    ratios = [(start - _log_snr(sigma)) / h for sigma in sigmas[1:]]
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


SCHEDULERS: dict[str, Callable[[Config, int], Schedule]] = {
    "unipc": _unipc,
    "euler": _euler,
    "dpmpp_2m": _dpmpp_2m,
    "lcm": _lcm,
}
TAKES_SIGMAS = ("unipc", "euler", "lcm")
