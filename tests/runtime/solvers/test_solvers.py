"""The matrices against Diffusers' own schedulers, both driven by the same nonlinear network."""

from __future__ import annotations

import json
import random
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from mutoscope.solvers.options import TAKES_SIGMAS, ScheduleError, from_diffusers
from mutoscope.solvers.solvers import MAX_STATE_ROWS, SCHEDULERS, Schedule, build_schedule

SHAPE = (1, 2, 1, 2, 3)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
UNIPC, EULER, DPM = "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"
LCM = "FlowMatchLCMScheduler"
NOISE_SEED = 11  # of what the steps of a stochastic solver draw


def reference(class_name: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A scheduler of Diffusers and the content of its scheduler_config.json."""
    scheduler = getattr(diffusers, class_name)(**options)
    return scheduler, json.loads(scheduler.to_json_string())


class Network:
    """A velocity that depends on everything and is linear in nothing."""

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        size = int(np.prod(SHAPE))
        self.mixing = generator.standard_normal((size, size)) / np.sqrt(size)
        self.noise = generator.standard_normal(SHAPE)

    def __call__(self, x: np.ndarray, timestep: float) -> np.ndarray:
        return (
            np.tanh(self.mixing @ x.reshape(-1).astype(np.float64) + timestep / 1000).reshape(x.shape).astype(x.dtype)
        )


def reference_path(
    scheduler: Any, count: int, network: Network, dtype: torch.dtype, sigmas: list[float] | None = None
) -> list[np.ndarray]:
    if sigmas is None:
        scheduler.set_timesteps(count)
    else:
        scheduler.set_timesteps(sigmas=np.asarray(sigmas))
    scheduler.set_begin_index(0)
    draws = {} if scheduler.__class__.__name__ == UNIPC else {"generator": torch.Generator().manual_seed(NOISE_SEED)}
    scheduler.sigmas = scheduler.sigmas.to(dtype)
    x, path = torch.from_numpy(network.noise).to(dtype), []
    for t in scheduler.timesteps:
        velocity = torch.from_numpy(network(x.numpy(), float(t)))
        x = scheduler.step(velocity, t, x, return_dict=False, **draws)[0]
        path.append(x.numpy())
    return path


def matrix_path(schedule: Schedule, network: Network, dtype: Any, other_rows: float = 0.0) -> list[np.ndarray]:
    state, path = np.full((schedule.state_rows, *SHAPE), other_rows, dtype), []
    state[0], generator = network.noise, torch.Generator().manual_seed(NOISE_SEED)
    for row in range(1, schedule.noise_rows):
        state[row] = torch.randn(SHAPE, generator=generator).numpy()
    for step in schedule.steps:
        velocity = network(state[0], step.timestep)
        state = np.tensordot(step.solver_a.astype(dtype), state, 1) + np.multiply.outer(
            step.solver_b.astype(dtype), velocity
        )
        path.append(state[0])
    return path


def largest_difference(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    assert len(first) == len(second)
    return max(float(np.abs(a - b).max()) for a, b in zip(first, second, strict=True)) / max(
        float(np.abs(a).max()) for a in first
    )


def random_unipc(draw: random.Random, count: int) -> dict[str, Any]:
    options = {
        "solver_order": draw.choice([1, 2, 2, 3]),
        "solver_type": draw.choice(["bh1", "bh2", "bh2", "midpoint"]),
        "final_sigmas_type": draw.choice(["zero", "zero", "sigma_min"]),
        "flow_shift": draw.choice([1.0, 3.0, 5.0, 8.0, draw.uniform(0.5, 12)]),
        "disable_corrector": draw.choice([[], [], [0], [0, 1, 2], sorted(draw.sample(range(30), 5))]),
        "lower_order_final": draw.choice([True, True, False]),
        "shift_terminal": draw.choice([None, None, 0.1]) if count > 1 else None,
    }
    if options["final_sigmas_type"] == "zero":
        # Diffusers divides by zero here; see the tests of those two.
        options["lower_order_final"] = True
        options["solver_type"] = "bh2"
    elif options["solver_order"] == 3:
        options["lower_order_final"] = True
    return options | FLOW


def random_euler(draw: random.Random, count: int) -> dict[str, Any]:
    terminal = draw.choice([None, 0.05, 0.3]) if count > 1 else None
    return {"shift": draw.choice([1, 3.0, draw.uniform(0.5, 12)]), "shift_terminal": terminal}


def random_dpm(draw: random.Random, count: int) -> dict[str, Any]:
    return {
        "solver_order": draw.choice([1, 2, 2, 2]),
        "solver_type": draw.choice(["midpoint", "heun", "bh2"]),
        "final_sigmas_type": draw.choice(["zero", "sigma_min"]),
        "flow_shift": draw.choice([1.0, 3.0, 5.0, draw.uniform(0.5, 12)]),
        "lower_order_final": draw.choice([True, False]),
        "euler_at_final": draw.choice([True, False]),
        "beta_schedule": draw.choice(["linear", "scaled_linear"]),
        "beta_start": draw.choice([1e-4, 1e-4, 8.5e-4]),
    } | FLOW


KINDS = {
    "unipc": (UNIPC, random_unipc),
    "euler": (EULER, random_euler),
    "dpmpp_2m": (DPM, random_dpm),
    "lcm": (LCM, random_euler),
}
MOST_STEPS = {"lcm": MAX_STATE_ROWS}


@pytest.mark.parametrize(("name", "configurations"), [("unipc", 180), ("euler", 60), ("dpmpp_2m", 100), ("lcm", 60)])
def test_matrices_follow_diffusers_for_random_configurations(name: str, configurations: int) -> None:
    class_name, random_options = KINDS[name]
    draw = random.Random(f"schedule {name}")
    for index in range(configurations):
        count = draw.randint(1, MOST_STEPS.get(name, 30))
        options = random_options(draw, count) | {"num_train_timesteps": draw.choice([1000, 1000, 1000, 500])}
        scheduler, config = reference(class_name, **options)
        where = f"configuration {index}: {count} steps, {options}"
        assert from_diffusers(config) == name, where
        schedule, network = build_schedule(name, config, count), Network(index)
        expected = reference_path(scheduler, count, network, torch.float32)

        assert [step.timestep for step in schedule.steps] == scheduler.timesteps.tolist(), where
        assert [step.sigma for step in schedule.steps] == scheduler.sigmas[:-1].tolist(), where
        assert largest_difference(expected, matrix_path(schedule, network, np.float64)) < 1e-5, where
        assert largest_difference(expected, matrix_path(schedule, network, np.float32)) < 1e-5, where


def of_shift_5(class_name: str) -> dict[str, Any]:
    return {"shift": 5.0} if class_name in (EULER, LCM) else {"flow_shift": 5.0, **FLOW}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("class_name", [UNIPC, EULER, DPM, LCM])
def test_every_solver_takes_the_config_of_every_class(name: str, class_name: str) -> None:
    native_class, count, network = KINDS[name][0], 7, Network(4)
    _, config = reference(class_name, **of_shift_5(class_name))
    scheduler, _ = reference(native_class, **of_shift_5(native_class))
    schedule = build_schedule(name, config, count)
    assert schedule.name == name
    expected = reference_path(scheduler, count, network, torch.float32)
    assert largest_difference(expected, matrix_path(schedule, network, np.float32)) < 1e-5


@pytest.mark.parametrize(
    ("name", "order", "rows"), [("unipc", 1, 3), ("unipc", 2, 4), ("unipc", 3, 5), ("euler", 2, 1), ("dpmpp_2m", 2, 2)]
)
def test_matrices_have_as_many_rows_as_the_state_and_are_float32(name: str, order: int, rows: int) -> None:
    schedule = build_schedule(name, {"solver_order": order}, 5)
    assert schedule.state_rows == rows and len(schedule.steps) == 5
    for step in schedule.steps:
        assert step.solver_a.shape == (rows, rows) and step.solver_b.shape == (rows,)
        assert step.solver_a.dtype == step.solver_b.dtype == np.float32


@pytest.mark.parametrize("name", SCHEDULERS)
def test_rows_below_the_latents_may_start_as_anything(name: str) -> None:
    for options in ({}, {"solver_order": 1}, {"lower_order_final": False, "final_sigmas_type": "sigma_min"}):
        if name in ("euler", "lcm") and "final_sigmas_type" in options:
            continue
        schedule, network = build_schedule(name, options, MOST_STEPS.get(name, 9)), Network(2)
        from_zeros = matrix_path(schedule, network, np.float32)
        np.testing.assert_array_equal(from_zeros, matrix_path(schedule, network, np.float32, other_rows=100.0))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_network_that_knows_the_answer_is_followed_to_it_exactly(name: str) -> None:
    """With v = noise - clean at every level, the path is straight, and every solver ends at the clean sample."""
    noise, clean = np.array([0.5, -2.0]), np.array([1.5, 0.25])
    for count in (1, 3, 8) if name in MOST_STEPS else (1, 3, 20, 50):
        schedule = build_schedule(name, {"flow_shift": 3.0}, count)
        state = np.zeros((schedule.state_rows, 2))
        state[: schedule.noise_rows] = noise
        state[0] = first = clean + schedule.steps[0].sigma * (noise - clean)
        for step in schedule.steps:
            np.testing.assert_allclose(state[0], clean + step.sigma * (noise - clean), atol=1e-5)
            state = step.solver_a @ state + np.multiply.outer(step.solver_b, noise - clean)
        assert not np.allclose(first, clean)
        np.testing.assert_allclose(state[0], clean, atol=1e-5)


@pytest.mark.parametrize("name", TAKES_SIGMAS)
def test_levels_of_the_callers_choice_are_shifted_and_followed_as_diffusers_does(name: str) -> None:
    draw = random.Random(f"levels {name}")
    for index in range(20):
        sigmas = sorted((draw.uniform(0.01, 1) for _ in range(draw.randint(2, 8))), reverse=True)
        sigmas[0] = draw.choice([1.0, sigmas[0]])
        class_name, random_options = KINDS[name]
        scheduler, config = reference(class_name, **random_options(draw, len(sigmas)))
        schedule, network = build_schedule(name, config, len(sigmas), sigmas), Network(index)
        expected = reference_path(scheduler, len(sigmas), network, torch.float32, sigmas)
        assert [step.timestep for step in schedule.steps] == scheduler.timesteps.tolist()
        assert largest_difference(expected, matrix_path(schedule, network, np.float32)) < 1e-5


def test_four_steps_of_a_distilled_model_stand_where_its_authors_trained_them() -> None:
    """Steps 1000, 750, 500 and 250 with a shift of 5, as LightX2V's distilled Wan 2.1 takes them."""
    schedule = build_schedule("lcm", {"shift": 5.0}, 4, [1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose([step.timestep for step in schedule.steps], [1000, 937.5, 2500 / 3, 625], rtol=1e-6)


def test_eulers_scheduler_with_stochastic_sampling_is_lcm() -> None:
    scheduler, config = reference(EULER, shift=5.0, stochastic_sampling=True)
    assert from_diffusers(config) == "lcm" and from_diffusers(reference(LCM)[1]) == "lcm"
    schedule, network = build_schedule("lcm", config, 4), Network(6)
    expected = reference_path(scheduler, 4, network, torch.float32)
    assert largest_difference(expected, matrix_path(schedule, network, np.float32)) < 1e-5


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_config_that_says_nothing_of_sigmas_in_so_many_words_gives_even_levels(name: str) -> None:
    said, unsaid = build_schedule(name, {"sigmas": None}, 4), build_schedule(name, {}, 4)
    assert [step.timestep for step in said.steps] == [step.timestep for step in unsaid.steps]


def test_more_steps_of_lcm_than_there_are_states_are_refused() -> None:
    assert build_schedule("lcm", {}, MAX_STATE_ROWS).noise_rows == MAX_STATE_ROWS
    with pytest.raises(
        ScheduleError, match=r"lcm needs a row of solver state for each of its 9 steps, .*ask for at most 8 steps"
    ):
        build_schedule("lcm", {}, 9)
    with pytest.raises(ScheduleError, match="each of its 100000 steps"):  # whose matrices no memory would hold
        build_schedule("lcm", {}, 100_000)


def test_bh1_ends_at_the_clean_sample_where_diffusers_multiplies_zero_by_infinity() -> None:
    scheduler, config = reference(UNIPC, solver_type="bh1", **FLOW)
    schedule, network = build_schedule("unipc", config, 6), Network(1)
    expected = reference_path(scheduler, 6, network, torch.float32)
    path = matrix_path(schedule, network, np.float32)
    assert np.isnan(expected[-1]).all()
    assert largest_difference(expected[:-1], path[:-1]) < 1e-5
    last = schedule.steps[-1]
    np.testing.assert_array_equal(last.solver_a[0], [1, 0, 0, 0])
    assert last.solver_b[0] == -np.float32(last.sigma)


@pytest.mark.parametrize(("order", "end"), [(2, "zero"), (3, "zero"), (3, "sigma_min")])
def test_a_last_step_that_divides_by_zero_is_refused(order: int, end: str) -> None:
    options = {"solver_order": order, "final_sigmas_type": end, "lower_order_final": False}
    with pytest.raises(ScheduleError, match=r"divides by zero in step 8 of 8.*set lower_order_final to true"):
        build_schedule("unipc", options, 8)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "4"])
def test_a_number_of_steps_below_one_or_no_integer_is_refused(count: Any) -> None:
    with pytest.raises(ScheduleError, match="num_inference_steps must be an integer of at least 1"):
        build_schedule("euler", {}, count)


def test_one_step_cannot_be_stretched_to_a_terminal_level() -> None:
    with pytest.raises(ScheduleError, match=r"shift_terminal is 0\.1 and needs at least 2 inference steps"):
        build_schedule("euler", {"shift_terminal": 0.1}, 1)


def test_an_unknown_scheduler_lists_the_known() -> None:
    with pytest.raises(ScheduleError, match="'ddim'; supported: unipc, euler, dpmpp_2m, lcm"):
        build_schedule("ddim", {}, 5)
