"""Denoising with two experts, and with more than latents drawn from the seed, on the fake backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mutoscope import StepEvent
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.manifest import Draw, Expert
from mutoscope_engines.testing import FakeBackend

from tests.bundles import graphs, interfaces, tensors
from tests.runtime.running.functions import FUNCTIONS, PROMPT, denoised, early, embeds_of, late, latents_of

SHAPE = (4, 3, 4, 6)  # latents of the bundle's default video


@pytest.fixture
def two_experts(make_bundle: Callable[..., Bundle]) -> Bundle:
    """One denoiser from timestep 500 on, guided by 4, and one below it, which its bundle leaves unguided."""
    ends = interfaces()
    return make_bundle(
        experts=(Expert(role="denoiser", above=500.0, guidance_scale=4.0), Expert(role="denoiser_low")),
        graphs=graphs(ends | {"denoiser_low": ends["denoiser"]}),
    )


def guided_by_two(bundle: Bundle, scales: tuple[float, float]) -> Callable[[Any, float], Any]:
    negative, positive = embeds_of(bundle)

    def velocity(x: Any, t: float) -> Any:
        expert, scale = (early, scales[0]) if t >= 500 else (late, scales[1])
        with_it = expert(x, t, positive)
        return with_it if scales[0] <= 1 else expert(x, t, negative) * (1 - scale) + with_it * scale

    return velocity


@pytest.mark.parametrize("branches_per_call", [1, 2])
@pytest.mark.parametrize(
    ("asked", "scales"),
    [
        ({}, (4.0, 1.0)),
        ({"guidance_scale": 3.0}, (3.0, 3.0)),
        ({"guidance_scale": 1.0}, (1.0, 1.0)),
        ({"guidance_scale_2": 0.5}, (4.0, 0.5)),
        ({"guidance_scale": 3.0, "guidance_scale_2": 2.0}, (3.0, 2.0)),
        ({"guidance_scale": 0.5, "guidance_scale_2": 2.0}, (0.5, 2.0)),
    ],
    ids=["defaults of the experts", "one for both", "none", "one below 1", "one for each", "of the second alone"],
)
def test_the_second_expert_goes_on_from_the_state_of_the_first(
    backend: FakeBackend, load: Any, two_experts: Bundle, branches_per_call: int, asked: Any, scales: Any
) -> None:
    with load(two_experts, branches_per_call=branches_per_call) as pipeline:
        plan = pipeline.generate(PROMPT, seed=3, num_inference_steps=6, **asked).plan
    assert plan.schedule.timesteps[3] > 500 > plan.schedule.timesteps[-1]  # both have their turn
    expected = denoised(two_experts, SHAPE, 6, 3, guided_by_two(two_experts, scales))
    np.testing.assert_allclose(latents_of(backend.fed), expected, atol=2e-5)


@pytest.mark.parametrize("branches_per_call", [1, 2])
def test_an_expert_without_guidance_runs_the_prompt_alone_beside_one_with_it(
    backend: FakeBackend, load: Any, two_experts: Bundle, branches_per_call: int
) -> None:
    """Each of its steps is, up to rounding, that of two branches of which the negative one counts nothing."""
    guided, unguided = "denoiser", "denoiser_low"
    with load(two_experts, branches_per_call=branches_per_call) as pipeline:
        plan = pipeline.generate(PROMPT, num_inference_steps=6).plan
    assert plan.guidance.scales == {unguided: 1.0, guided: 4.0}
    both = np.stack(embeds_of(two_experts))
    runs = [feeds for role, feeds in backend.fed if role == unguided]
    assert len(runs) == plan.schedule.calls[unguided] > 0
    for feeds in runs:
        np.testing.assert_array_equal(feeds["prompt_embeds"], both[1:])
        in_one = FUNCTIONS[unguided](**feeds)
        in_two = FUNCTIONS[unguided](**feeds | {"prompt_embeds": both, "guidance_weights": np.float32([0, 1])})
        np.testing.assert_allclose(in_one["next_state"], in_two["next_state"], rtol=1e-6, atol=1e-6)
    times = 2 // branches_per_call
    assert sum(role == guided for role, _ in backend.fed) == times * plan.schedule.calls[guided]


def test_an_expert_without_guidance_takes_of_what_is_drawn_for_each_branch_the_last(
    backend: FakeBackend, load: Any, make_bundle: Callable[..., Bundle]
) -> None:
    ends = interfaces()
    inputs, outputs = ends["denoiser"]
    ends["denoiser"] = ends["denoiser_low"] = (inputs + tensors(of_branch=("B", 5)), outputs)
    draws = (Draw(input="latents", shape=(4, "F", "h", "w")), Draw(input="of_branch", shape=("B", 5)))
    experts = (Expert(role="denoiser", above=500.0, guidance_scale=4.0), Expert(role="denoiser_low"))
    with load(make_bundle(draws=draws, experts=experts, graphs=graphs(ends))) as pipeline:
        pipeline.generate(PROMPT, num_inference_steps=6)
    drawn = {role: feeds["of_branch"] for role, feeds in backend.fed if role.startswith("denoiser")}
    assert drawn["denoiser"].shape == (2, 5)
    np.testing.assert_array_equal(drawn["denoiser_low"], drawn["denoiser"][1:])


def test_only_one_expert_is_open_at_a_time(backend: FakeBackend, load: Any, two_experts: Bundle) -> None:
    with load(two_experts) as pipeline:
        plan = pipeline.generate(PROMPT, num_inference_steps=6).plan
    high, low = plan.schedule.calls["denoiser"], plan.schedule.calls["denoiser_low"]
    assert high + low == 6 and min(high, low) > 0
    assert [event for event in backend.log if event[1].startswith("denoiser")] == [
        *[("open", "denoiser"), *[("run", "denoiser")] * high, ("close", "denoiser")],
        *[("open", "denoiser_low"), *[("run", "denoiser_low")] * low, ("close", "denoiser_low")],
    ]


def test_steps_are_numbered_through_all_experts(load: Any, two_experts: Bundle) -> None:
    told: list[StepEvent] = []
    with load(two_experts) as pipeline:
        pipeline.generate(PROMPT, num_inference_steps=6, on_step=told.append)
    assert [(event.step, event.total) for event in told] == [(number, 6) for number in range(1, 7)]


def test_a_caller_who_stops_between_the_experts_leaves_none_open(
    backend: FakeBackend, load: Any, two_experts: Bundle
) -> None:
    def stop_at_the_last(event: StepEvent) -> None:
        if event.step == event.total:
            raise KeyboardInterrupt

    with load(two_experts) as pipeline:
        with pytest.raises(KeyboardInterrupt):
            pipeline.generate(PROMPT, num_inference_steps=6, on_step=stop_at_the_last)
        assert {event for event in backend.log if event[1].startswith("denoiser") and event[0] == "close"} == {
            ("close", "denoiser"),
            ("close", "denoiser_low"),
        }
        assert backend.open_bindings == 0


@pytest.mark.parametrize("branches_per_call", [1, 2])
def test_what_a_model_draws_comes_from_one_generator_in_its_order(
    backend: FakeBackend, load: Any, make_bundle: Callable[..., Bundle], branches_per_call: int
) -> None:
    """The noise that a few-step solver returns to comes after it."""
    ends = interfaces()
    inputs, outputs = ends["denoiser"]
    ends["denoiser"] = (inputs + tensors(noise=(2, "F", "h"), of_branch=("B", 5)), outputs)
    draws = (
        Draw(input="noise", shape=(2, "F", "h")),
        Draw(input="latents", shape=(4, "F", "h", "w")),
        Draw(input="of_branch", shape=("B", 5)),
    )
    bundle = make_bundle(draws=draws, graphs=graphs(ends))
    with load(bundle, branches_per_call=branches_per_call) as pipeline:
        pipeline.generate(PROMPT, seed=7, guidance_scale=3.0, scheduler="lcm", num_inference_steps=2)
    generator = torch.Generator().manual_seed(7)
    noise, latents, of_branch, renewed = (
        torch.randn(shape, generator=generator).numpy() for shape in ((2, 3, 4), SHAPE, (2, 5), SHAPE)
    )
    runs = [feeds for role, feeds in backend.fed if role == "denoiser"]
    np.testing.assert_array_equal(runs[0]["latents"], latents)
    np.testing.assert_array_equal(runs[0]["state"], np.stack([latents, renewed]))
    assert len(runs) == 2 * 2 // branches_per_call
    for index, feeds in enumerate(runs):
        np.testing.assert_array_equal(feeds["noise"], noise)
        rows = of_branch if branches_per_call == 2 else of_branch[index % 2 :][:1]
        np.testing.assert_array_equal(feeds["of_branch"], rows)
