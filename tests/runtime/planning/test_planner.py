"""Plans of bundles with two denoisers: who is called when, how far each is guided, and what they take together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from mutoscope.bundle.bundle import Bundle, write_manifest
from mutoscope.bundle.manifest import Expert
from mutoscope.conditions import load_conditions
from mutoscope.errors import RequestError
from mutoscope.planning.execution import Execution
from mutoscope.planning.plan import Job, Plan
from mutoscope.planning.planner import make_job, plan_guidance, with_experts
from mutoscope.request import RuntimeOptions, VideoRequest
from mutoscope.solvers.solvers import Schedule, Step
from mutoscope_engines.session import EngineWanted, Figures
from mutoscope_engines.testing import FakeBackend

from tests.bundles import graphs, interfaces

MB = 10**6
WEIGHTS = {"denoiser": 30 * MB, "denoiser_low": 50 * MB}  # of the others, 1 MB


def figures(graph: Path, wanted: EngineWanted) -> Figures:
    return Figures(WEIGHTS.get(graph.parent.name, MB), activation_bytes=0)


def streaming(**streamable: int) -> Callable[[Path, EngineWanted], Figures]:
    """The same, of which these graphs may stream as many bytes of their weights."""

    def figures_of(graph: Path, wanted: EngineWanted) -> Figures:
        return replace(figures(graph, wanted), streamable_bytes=streamable.get(graph.parent.name, 0))

    return figures_of


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Callable[..., Bundle]:
    """A bundle with a denoiser from timestep 500 on and one below it, whose own scales may be given."""

    def make(high: float | None = None, low: float | None = None, above: float = 500.0) -> Bundle:
        ends = interfaces()
        experts = (
            Expert(role="denoiser", above=above, guidance_scale=high),
            Expert(role="denoiser_low", guidance_scale=low),
        )
        return make_bundle(experts=experts, graphs=graphs(ends | {"denoiser_low": ends["denoiser"]}))

    return make


def job_of(
    bundle: Bundle,
    request: VideoRequest | None = None,
    memory: int = 1000 * MB,
    backend: FakeBackend | None = None,
    **asked: Any,
) -> Job:
    backend = backend or FakeBackend({}, figures=figures, memory=memory)
    execution = Execution.choose(RuntimeOptions(backend=backend), bundle)
    request = request or VideoRequest(prompt="a red circle", **{"seed": 1} | asked)
    return make_job(request, execution, bundle, load_conditions(bundle))


def test_each_step_calls_the_expert_of_its_timestep(bundle: Any) -> None:
    job = job_of(bundle(), num_inference_steps=20)
    assert len(job.schedule.steps) == 20
    assert {step.role for step in job.schedule.steps if step.timestep >= 500} == {"denoiser"}
    assert {step.role for step in job.schedule.steps if step.timestep < 500} == {"denoiser_low"}
    assert sum(job.plan.schedule.calls.values()) == 20


def test_an_expert_works_at_the_very_timestep_from_which_it_does(bundle: Any) -> None:
    """Euler without a shift begins at 1000."""
    steps = job_of(bundle(above=1000.0), scheduler="euler", flow_shift=1.0, num_inference_steps=4).schedule.steps
    assert (steps[0].timestep, steps[0].role) == (1000.0, "denoiser")
    assert {step.role for step in steps[1:]} == {"denoiser_low"}


@pytest.mark.parametrize(
    ("own", "asked", "scales", "branches"),
    [
        ((None, None), {}, (1.0, 1.0), 1),
        ((4.0, 3.0), {}, (4.0, 3.0), 2),
        ((None, 3.0), {}, (1.0, 1.0), 1),  # as in Diffusers, the first alone decides whether there is guidance
        ((4.0, None), {}, (4.0, 1.0), 2),
        ((0.5, 1.0), {}, (0.5, 0.5), 1),
        ((4.0, 3.0), {"guidance_scale_2": 0.5}, (4.0, 0.5), 2),
        ((4.0, 3.0), {"guidance_scale": 5.0, "guidance_scale_2": 2.0}, (5.0, 2.0), 2),
        ((4.0, 3.0), {"guidance_scale": 1.0, "guidance_scale_2": 2.0}, (1.0, 1.0), 1),
        ((None, None), {"guidance_scale_2": 2.0}, (1.0, 1.0), 1),
        ((4.0, 3.0), {"guidance_scale": 2.0}, (2.0, 2.0), 2),
        ((4.0, 3.0), {"guidance_scale": 1.0}, (1.0, 1.0), 1),
    ],
)
def test_an_expert_has_its_own_default_scale_and_a_request_wins(
    bundle: Any, own: tuple[Any, Any], asked: dict[str, Any], scales: tuple[float, float], branches: int
) -> None:
    job = job_of(bundle(*own), **asked)
    assert tuple(job.plan.guidance.scales.values()) == scales
    assert job.plan.sizes.branches == branches
    of_role = dict(zip(("denoiser", "denoiser_low"), scales, strict=True))
    for step in job.schedule.steps:
        scale = of_role[step.role]
        assert step.guidance_weights == ((1 - scale, scale) if branches == 2 and scale != 1 else (1.0,))


def test_a_second_scale_that_changes_nothing_is_noted(bundle: Any) -> None:
    assert job_of(bundle(), guidance_scale_2=3.0).plan.notes == (
        "guidance_scale_2 is not used: guidance_scale turns guidance off",
    )
    assert not job_of(bundle(4.0, 3.0), guidance_scale_2=2.0).plan.notes


def test_a_second_scale_is_refused_where_it_has_no_denoiser_or_no_meaning(bundle: Any, make_bundle: Any) -> None:
    with pytest.raises(RequestError, match=r"one denoiser, and guidance_scale_2 is for a second; got 3\.0. Leave it"):
        job_of(make_bundle(), guidance_scale_2=3.0)
    with pytest.raises(RequestError, match="guidance_scale_2 must be a number from 0 to 1000; got -1"):
        job_of(bundle(4.0, 3.0), guidance_scale_2=-1)


@pytest.mark.parametrize(
    ("timestep", "above"),
    [(901, 901.00000001), (875.1, 875.1), (901, 901.00004), (874, 875.0), (875, 875.0)],
)
def test_the_switch_is_where_torch_puts_it(bundle: Any, timestep: float, above: float) -> None:
    """`t >= boundary_ratio * num_train_timesteps` of `WanPipeline`, in float32 whatever the type of t."""
    first = bool(torch.tensor(timestep) >= above)
    schedule = Schedule("euler", (Step(float(np.float32(timestep)), 0.9, np.eye(1), np.ones(1)),), 1)
    manifest = bundle(above=above).manifest
    [step] = with_experts(schedule, plan_guidance(VideoRequest(prompt="a"), manifest), manifest).steps
    assert (step.role == "denoiser") == first


def test_a_plan_says_with_which_step_each_expert_begins(bundle: Any) -> None:
    """UniPC with a shift of 12 and a boundary of 875, as Wan 2.2 A14B has them: 26 of 40 steps."""
    for interval in (1, 3):
        plan = job_of(
            bundle(above=875.0), num_inference_steps=40, flow_shift=12.0, scheduler="unipc", cache_interval=interval
        ).plan
        assert plan.schedule.first_steps == {"denoiser": 1, "denoiser_low": 27}
        assert "first_steps" in plan.describe() and "denoiser 1, denoiser_low 27" in plan.describe()


def test_a_shift_that_is_not_the_checkpoints_own_is_the_default_and_noted(make_bundle: Any) -> None:
    bundle = make_bundle()
    defaults = msgspec.structs.replace(bundle.manifest.defaults, flow_shift=12.0)
    bundle = write_manifest(bundle.root, msgspec.structs.replace(bundle.manifest, defaults=defaults))
    plan = job_of(bundle).plan
    own, same = (job_of(bundle, flow_shift=shift).plan.schedule for shift in (3.0, 12.0))
    assert plan.schedule == same != own
    assert plan.notes == ("flow_shift is 12, as the authors of the model use it; the checkpoint's scheduler says 3",)
    assert not job_of(bundle, flow_shift=12.0).plan.notes


@pytest.mark.parametrize("asked", [{}, {"guidance_scale": 2.0}, {"guidance_scale": 2.0, "guidance_scale_2": 0.5}])
@pytest.mark.parametrize("own", [(None, None), (4.0, 4.0), (4.0, 3.0), (None, 3.0)])
def test_the_request_of_a_plan_guides_every_expert_as_the_plan_does(
    bundle: Any, own: tuple[Any, Any], asked: dict[str, Any]
) -> None:
    made = bundle(*own)
    plan = job_of(made, **asked).plan
    again = job_of(made, plan.to_request()).plan
    assert again == plan
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_two_experts_take_turns_in_memory_and_neither_is_kept(bundle: Any) -> None:
    plan = job_of(bundle()).plan
    options = plan.memory.options
    assert list(options) == ["condition", "denoiser", "denoiser_low", "decode"]
    assert {role: options[role].weight_bytes for role in WEIGHTS} == WEIGHTS
    assert plan.memory_peak_bytes == options["denoiser_low"].peak_bytes == 50 * MB + options["denoiser"].buffer_bytes
    assert not plan.memory.keep_loaded  # with memory for ten times as much
    assert job_of(bundle(), memory=plan.memory_peak_bytes).plan.memory.options == options


@pytest.mark.parametrize(("low", "least"), [(0, 50), (10, 40), (25, 25), (45, 15)])
def test_each_expert_streams_what_it_must_and_none_more_than_it_can(bundle: Any, low: int, least: int) -> None:
    """The first can do with 15 of its 30 MB; the second, the larger one, with `least` of its 50."""
    backend = FakeBackend({}, figures=streaming(denoiser=15 * MB, denoiser_low=low * MB), memory=1000 * MB)
    made = bundle()
    buffers = job_of(made, backend=backend).plan.memory.options["denoiser"].buffer_bytes
    backend.memory = least * MB + buffers
    options = job_of(made, backend=backend).plan.memory.options
    assert options["denoiser"].streamed_bytes == max(0, 30 - least) * MB
    assert options["denoiser_low"].streamed_bytes == (50 - least) * MB
    assert {options[role].peak_bytes for role in WEIGHTS} == {min(30, least) * MB + buffers, least * MB + buffers}
    backend.memory -= 1
    with pytest.raises(RequestError, match=r"denoising by the denoiser(_low)? needs at least"):
        job_of(made, backend=backend)


def test_an_expert_that_cannot_stream_decides_what_fits_though_a_larger_one_can(bundle: Any) -> None:
    """The larger expert alone would fit into 10 MB."""
    backend = FakeBackend({}, figures=streaming(denoiser_low=45 * MB), memory=20 * MB)
    with pytest.raises(RequestError, match=r"denoising by the denoiser needs at least 30\.\d+ MB"):
        job_of(bundle(), backend=backend)


def test_an_expert_without_guidance_takes_the_memory_of_one_branch(bundle: Any) -> None:
    shapes: dict[str, set[int]] = {}

    def by_branch(graph: Path, wanted: EngineWanted) -> Figures:
        if "prompt_embeds" in wanted.shapes:
            shapes.setdefault(graph.parent.name, set()).add(wanted.shapes["prompt_embeds"][0])
        return figures(graph, wanted)

    plan = job_of(bundle(4.0, None), backend=FakeBackend({}, figures=by_branch, memory=1000 * MB)).plan
    high, low = (plan.option_of(role) for role in WEIGHTS)
    assert (high.name, high.branches_per_call, low.name, low.branches_per_call) == ("whole", 2, "whole", 1)
    assert low.buffer_bytes < high.buffer_bytes
    assert shapes == {"denoiser": {1, 2}, "denoiser_low": {1}}
    assert plan.branches_per_call == 2
