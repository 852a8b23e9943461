"""Which options of a scheduler are honoured, and that none of the others is dropped in silence."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
from mutoscope.solvers.options import ScheduleError, from_diffusers
from mutoscope.solvers.solvers import SCHEDULERS, build_schedule

UNIPC, EULER, DPM = "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"
LCM = "FlowMatchLCMScheduler"


def test_the_shift_under_the_solvers_own_name_wins() -> None:
    both = {"shift": 2.0, "flow_shift": 9.0}
    assert build_schedule("euler", both, 4).steps[1].sigma == build_schedule("euler", {"shift": 2.0}, 4).steps[1].sigma
    assert build_schedule("unipc", both, 4).steps[1].sigma == build_schedule("unipc", {"shift": 9}, 4).steps[1].sigma


@pytest.mark.parametrize(
    ("name", "sigmas", "message"),
    [
        ("dpmpp_2m", [1, 0.5], "dpmpp_2m takes no sigmas; schedulers that do: unipc, euler, lcm"),
        ("euler", [0.5, 1], "sigmas must fall from at most 1 to above 0; got 0.5, 1"),
        ("euler", [1.5, 1], "sigmas must fall from at most 1"),
        ("euler", [1, 0], "sigmas must fall from at most 1"),
        ("euler", [1, float("nan")], "sigmas must fall from at most 1"),
        ("lcm", [1], "there are 1 sigmas for 2 steps; give one for each step"),
    ],
)
def test_levels_that_cannot_be_are_refused(name: str, sigmas: list[float], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        build_schedule(name, {}, 2, sigmas)


@pytest.mark.parametrize(
    ("name", "option", "value", "supported"),
    [
        *((name, "thresholding", True, "False") for name in SCHEDULERS),
        *((name, "use_dynamic_shifting", True, "False") for name in SCHEDULERS),
        ("lcm", "scale_factors", [0.5], "None, []"),
        *((name, "use_karras_sigmas", True, "False") for name in SCHEDULERS),
        *((name, "use_exponential_sigmas", True, "False") for name in SCHEDULERS),
        *((name, "use_beta_sigmas", True, "False") for name in SCHEDULERS),
        *((name, "use_flow_sigmas", False, "True") for name in SCHEDULERS),
        *((name, "prediction_type", "epsilon", "'flow_prediction'") for name in SCHEDULERS),
        ("unipc", "predict_x0", False, "True"),
        ("unipc", "solver_p", {"_class_name": "DDIMScheduler"}, "None"),
        ("unipc", "solver_order", 4, "1, 2, 3"),
        ("unipc", "solver_order", True, "1, 2, 3"),
        ("unipc", "solver_type", "rk45", "'bh1', 'bh2'"),
        ("unipc", "final_sigmas_type", "one", "'zero', 'sigma_min'"),
        ("unipc", "lower_order_final", "yes", "True, False"),
        ("euler", "invert_sigmas", True, "False"),
        ("euler", "stochastic_sampling", True, "False"),
        ("euler", "final_sigmas_type", "sigma_min", "'zero'"),
        ("dpmpp_2m", "algorithm_type", "sde-dpmsolver++", "'dpmsolver++'"),
        ("dpmpp_2m", "solver_order", 3, "1, 2"),
        ("dpmpp_2m", "use_lu_lambdas", True, "False"),
        ("dpmpp_2m", "beta_schedule", "squaredcos_cap_v2", "'linear', 'scaled_linear'"),
        ("dpmpp_2m", "shift_terminal", 0.1, "None"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused_by_name(
    name: str, option: str, value: Any, supported: str
) -> None:
    with pytest.raises(ScheduleError) as refusal:
        build_schedule(name, {option: value}, 5)
    message = str(refusal.value)
    assert option in message and repr(value) in message and f"supports: {supported}" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 7.0}, "rho is 7.0, and unipc does not know it; known: "),
        ({"flow_shift": 0}, "flow_shift must be a number above 0"),
        ({"flow_shift": float("nan")}, "flow_shift must be a number above 0"),
        ({"shift": "3"}, "shift must be a number above 0"),
        ({"shift_terminal": 1.0}, "shift_terminal must be a number above 0 and below 1"),
        ({"num_train_timesteps": 1}, "num_train_timesteps must be an integer of at least 2; got 1"),
        ({"disable_corrector": "all"}, "disable_corrector must be a list of step numbers; got 'all'"),
        ({"_class_name": "DDIMScheduler"}, f"'DDIMScheduler'; supported: {UNIPC}, {EULER}, {DPM}, {LCM}"),
        ({"flow_shift": 1e9}, "smaller shift"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        build_schedule("unipc", options, 5)


@pytest.mark.parametrize("class_name", ["DDIMScheduler", None, ["UniPCMultistepScheduler"]])
def test_a_scheduler_class_that_is_unknown_is_refused_with_the_known(class_name: Any) -> None:
    with pytest.raises(ScheduleError, match=f"supported: {UNIPC}, {EULER}, {DPM}"):
        from_diffusers({"_class_name": class_name})


@pytest.mark.parametrize("class_name", [UNIPC, DPM])
def test_a_config_that_leaves_the_flow_options_out_means_what_diffusers_means(class_name: str) -> None:
    scheduler = getattr(diffusers, class_name)()
    assert scheduler.config.prediction_type == "epsilon"
    with pytest.raises(ScheduleError, match="use_flow_sigmas is False"):
        from_diffusers({"_class_name": class_name})
