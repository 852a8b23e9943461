"""What a scheduler's configuration may say, under the names that Diffusers gives its options.

Knows the options of each solver and the values that it honours. Knows nothing of noise levels or matrices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Config = Mapping[str, Any]

CLASSES = {
    "UniPCMultistepScheduler": "unipc",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "FlowMatchLCMScheduler": "lcm",
}
WHOLE_TIMESTEPS = "_whole_timesteps"  # an option of `lcm` that Diffusers has not: the network is given whole numbers
MIN_SHIFT, MAX_SHIFT = 1e-3, 1000.0
TAKES_SIGMAS = ("unipc", "euler", "lcm")
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


class ScheduleError(ValueError):
    """A scheduler, or an option of one, that cannot be honoured."""


def from_diffusers(config: Config) -> str:
    """The name, in `SCHEDULERS`, of the solver that a scheduler_config.json asks for.

    Raises:
        ScheduleError: its class or one of its options cannot be honoured.
    """
    name = CLASSES[_checked_class(config.get("_class_name"))]
    if name == "euler" and config.get("stochastic_sampling"):
        name = "lcm"  # the same arithmetic under another name
    checked_options(name, config)
    return name


def _checked_class(class_name: Any) -> str:
    if class_name not in tuple(CLASSES):  # compared, not hashed: JSON may hold a list here
        raise ScheduleError(f"_class_name of the scheduler is {class_name!r}; supported: {', '.join(CLASSES)}")
    return str(class_name)


def checked_options(name: str, config: Config) -> Config:
    """`config` with the defaults of its class.

    Raises:
        ScheduleError: the solver cannot honour an option, or does not know it.
    """
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


def checked_sigmas(name: str, sigmas: Sequence[float], count: int) -> NDArray[np.float64]:
    """Levels [count], falling from at most 1 to above 0.

    Raises:
        ScheduleError: the solver takes no levels, or these are not such levels.
    """
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


def shifted(config: Config, shift: float | None) -> dict[str, Any]:
    """`config` with another shift, under the names of all solvers; as it is where there is none."""
    return {**config, **({} if shift is None else {"flow_shift": shift, "shift": shift})}


def flow_shift_of(name: str, options: Config) -> float:
    """The shift that solver `name` uses: under the solver's own name for it, else under the other's, else none (1)."""
    names = ("shift", "flow_shift") if name in ("euler", "lcm") else ("flow_shift", "shift")
    return next((float(options[key]) for key in names if options.get(key) is not None), 1.0)
