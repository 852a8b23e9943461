"""Schedules whose first steps are skipped, as of a video that begins from another, against Diffusers' schedulers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mutoscope.solvers.options import from_diffusers
from mutoscope.solvers.solvers import build_schedule
from mutoscope.solvers.step_cache import cached

from tests.runtime.solvers.test_solvers import (
    DPM,
    EULER,
    FLOW,
    LCM,
    NOISE_SEED,
    UNIPC,
    Network,
    largest_difference,
    matrix_path,
    reference,
)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "unipc": (UNIPC, FLOW | {"flow_shift": 3.0}),
    "unipc of third order, without some correctors": (
        UNIPC, FLOW | {"solver_order": 3, "disable_corrector": [4, 6]},
    ),
    "euler": (EULER, {"shift": 5.0}),
    "dpmpp_2m": (DPM, FLOW | {"flow_shift": 3.0}),
    "dpmpp_2m that ends in the second order": (
        DPM, FLOW | {"final_sigmas_type": "sigma_min", "lower_order_final": False},
    ),
    "lcm": (LCM, {"shift": 8.0}),
}  # fmt: skip


@pytest.mark.parametrize("skipped", [0, 1, 4, 9])
@pytest.mark.parametrize("case", CASES)
def test_the_steps_that_are_left_begin_anew_as_those_of_diffusers(case: str, skipped: int) -> None:
    if case == "lcm" and skipped < 4:
        pytest.skip("it takes eight steps at most")
    count, network = 10, Network(seed=skipped)
    class_name, options = CASES[case]
    scheduler, config = reference(class_name, **options)
    scheduler.set_timesteps(count)
    scheduler.sigmas = scheduler.sigmas.double()
    draws = {} if class_name == UNIPC else {"generator": torch.Generator().manual_seed(NOISE_SEED)}
    x, expected = torch.from_numpy(network.noise), []
    for t in scheduler.timesteps[skipped:]:
        x = scheduler.step(torch.from_numpy(network(x.numpy(), float(t))), t, x, return_dict=False, **draws)[0]
        expected.append(x.numpy())
    schedule = build_schedule(from_diffusers(config), config, count, skipped=skipped)
    rows_nothing_reads = 1e3 if case != "lcm" else 0.0
    found = matrix_path(schedule, network, np.float64, rows_nothing_reads)
    assert np.isfinite(expected).all()
    assert largest_difference(expected, found) < 3e-6  # the matrices are float32
    assert [step.timestep for step in schedule.steps] == [float(t) for t in scheduler.timesteps[skipped:]]
    assert schedule.steps[0].sigma == float(scheduler.sigmas[skipped])


def test_lcm_needs_a_row_of_state_for_each_step_that_is_made() -> None:
    schedule = build_schedule("lcm", {"shift": 8.0}, 10, skipped=6)
    assert (schedule.state_rows, schedule.noise_rows, len(schedule.steps)) == (4, 4, 4)


def test_first_steps_are_counted_with_those_that_are_skipped() -> None:
    schedule = build_schedule("euler", {}, 10, skipped=4)
    assert schedule.first_steps == {"denoiser": 5}
    assert cached(schedule, 3).first_steps == {"denoiser": 5}
