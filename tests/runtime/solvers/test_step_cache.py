"""Cached steps against Diffusers' own schedulers, which are given the extrapolated velocity by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from mutoscope.solvers.options import ScheduleError
from mutoscope.solvers.solvers import SCHEDULERS, build_schedule
from mutoscope.solvers.step_cache import cached, computed_steps

SHAPE = (1, 2, 3)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
SOLVERS = {
    "unipc": ("UniPCMultistepScheduler", FLOW),
    "unipc of third order": ("UniPCMultistepScheduler", FLOW | {"solver_order": 3}),
    "unipc of first order without a corrector": (
        "UniPCMultistepScheduler", FLOW | {"solver_order": 1, "disable_corrector": list(range(20))},
    ),
    "euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", FLOW),
}  # fmt: skip


def network(x: np.ndarray, timestep: float) -> np.ndarray:
    mixing = np.random.default_rng(3).standard_normal((6, 6)) / 2
    return np.tanh(mixing @ x.reshape(-1).astype(np.float64) + timestep / 1000).reshape(x.shape).astype(x.dtype)


def reference(scheduler: Any, noise: np.ndarray, count: int, computed: tuple[int, ...]) -> list[np.ndarray]:
    """The sample after each step; where the network is not called, its velocity lies on the line of the last two."""
    scheduler.set_timesteps(count)
    scheduler.set_begin_index(0)
    x, path, seen = torch.from_numpy(noise), [], []
    for index, t in enumerate(scheduler.timesteps):
        if index in computed:
            velocity = network(x.numpy(), float(t))
            seen.append((index, velocity))
        else:
            (earlier, before), (later, last) = seen[-2:]
            velocity = (last + (last - before) * np.float32((index - later) / (later - earlier))).astype(np.float32)
        x = scheduler.step(torch.from_numpy(velocity), t, x, return_dict=False)[0]
        path.append(x.numpy())
    return path


@pytest.mark.parametrize("interval", [2, 3, 5])
@pytest.mark.parametrize("solver", SOLVERS)
def test_steps_between_calls_follow_diffusers_with_an_extrapolated_velocity(solver: str, interval: int) -> None:
    class_name, options = SOLVERS[solver]
    scheduler = getattr(diffusers, class_name)(**options)
    config, count = json.loads(scheduler.to_json_string()), 20
    whole = build_schedule(solver.partition(" ")[0], config, count)
    schedule, computed = cached(whole, interval), computed_steps(count, interval)
    assert schedule.state_rows == whole.state_rows + 1 and len(schedule.steps) == len(computed) < count
    noise = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    expected = reference(scheduler, noise, count, computed)

    state = np.full((schedule.state_rows, *SHAPE), 100.0, np.float32)
    state[0] = noise
    for step, index, following in zip(schedule.steps, computed, [*computed[1:], count], strict=True):
        assert (step.timestep, step.sigma) == (whole.steps[index].timestep, whole.steps[index].sigma)
        velocity = network(state[0], step.timestep)
        state = np.tensordot(step.solver_a, state, 1) + np.multiply.outer(step.solver_b, velocity)
        np.testing.assert_allclose(state[0], expected[following - 1], atol=2e-5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_an_interval_of_one_changes_nothing(name: str) -> None:
    schedule = build_schedule(name, FLOW, 8)
    assert cached(schedule, 1) is schedule


def test_a_velocity_on_a_straight_line_makes_a_cached_run_equal_to_a_whole_one() -> None:
    noise, clean, bend = np.array([0.5, -2.0]), np.array([1.5, 0.25]), np.array([0.3, 0.1])
    whole = build_schedule("unipc", {"flow_shift": 3.0}, 20)
    timesteps, ends = [step.timestep for step in whole.steps], []
    for schedule in (whole, cached(whole, 3)):
        state = np.zeros((schedule.state_rows, 2))
        state[0] = noise
        for step in schedule.steps:
            index = timesteps.index(step.timestep)
            state = step.solver_a @ state + np.multiply.outer(step.solver_b, noise - clean + index * bend)
        ends.append(state[0])
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-5)


def test_the_first_three_tenths_and_the_last_step_are_always_computed() -> None:
    assert computed_steps(20, 2) == (0, 1, 2, 3, 4, 5, 7, 9, 11, 13, 15, 17, 19)
    assert computed_steps(20, 3) == (0, 1, 2, 3, 4, 5, 7, 9, 12, 15, 18, 19)
    assert computed_steps(20, 4) == (0, 1, 2, 3, 4, 5, 7, 9, 12, 15, 19)
    assert computed_steps(5, 1000) == (0, 1, 3, 4)
    for count in range(1, 60):
        for interval in range(1, 12):
            computed = computed_steps(count, interval)
            assert computed[:2] == (0, 1)[:count] and computed[-1] == count - 1
            assert np.diff(computed, prepend=-1).max() <= interval


@pytest.mark.parametrize("switch", [1, 3, 9, 18, 19])
@pytest.mark.parametrize("interval", [2, 4, 9])
def test_no_velocity_of_one_expert_is_used_in_a_step_of_another(switch: int, interval: int) -> None:
    """The state of a run whose first expert gives one velocity and the second another stays on their two lines."""
    whole = build_schedule("euler", {"shift": 3.0}, 20)
    roles = ["denoiser"] * switch + ["denoiser_low"] * (20 - switch)
    whole = replace(whole, steps=tuple(replace(step, role=role) for step, role in zip(whole.steps, roles, strict=True)))
    velocities, ends = {"denoiser": 1.0, "denoiser_low": -50.0}, []
    for schedule in (whole, cached(whole, interval)):
        state = np.zeros((schedule.state_rows, 1))
        for step in schedule.steps:
            state = step.solver_a @ state + np.multiply.outer(step.solver_b, velocities[step.role] * np.ones(1))
        ends.append(state[0])
    assert len(schedule.steps) < 20
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-5)
    computed = computed_steps(20, interval, [switch])
    assert {switch - 1, *range(switch, min(switch + 2, 20)), 19} <= set(computed)


def test_a_solver_that_begins_each_step_from_new_noise_cannot_be_cached() -> None:
    assert len(cached(build_schedule("lcm", {}, 3), 2).steps) == 3  # there is nothing between
    with pytest.raises(ScheduleError, match="cache_interval must be 1 with lcm"):
        cached(build_schedule("lcm", {}, 8), 2)
