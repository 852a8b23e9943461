"""A plan has every default resolved, comes back from JSON, and asks for the same video again."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from typing import Any

import mutoscope.planning.execution
import mutoscope.values.checks
import numpy as np
import pytest
from mutoscope.errors import BackendUnavailableError, RequestError
from mutoscope.planning.plan import Plan
from mutoscope.request import VideoRequest
from mutoscope.solvers.solvers import build_schedule
from mutoscope.version import __version__
from mutoscope_engines.precisions import base_precision

from tests.bundles import in_precision


def test_what_the_request_leaves_open_comes_from_the_bundle(job) -> None:
    plan = job().plan
    assert (plan.geometry.height, plan.geometry.width, plan.geometry.num_frames, plan.geometry.fps) == (32, 48, 9, 8)
    assert (plan.schedule.scheduler, plan.schedule.num_inference_steps, plan.guidance.scale) == ("unipc", 4, 1.0)
    assert (plan.placements.precision, plan.family, plan.conditions.lengths["L"]) == ("fp32", "wan", 24)
    assert (plan.guidance.weights, plan.branches_per_call) == ((1.0,), 1)
    assert plan.geometry.latents_shape == (4, 3, 4, 6)  # 9 frames are 1 + 2 * 4; a latent pixel is 8 pixels wide
    assert plan.geometry.network_tokens == 3 * 2 * 3  # patches of 1 x 2 x 2
    assert (
        len(plan.schedule.timesteps) == 4 and plan.placements.threads >= 1 and "onnxruntime" in plan.placements.backend
    )
    assert None not in plan.to_dict().values()


def test_what_the_request_says_is_done(job, monkeypatch) -> None:
    monkeypatch.setattr(mutoscope.values.checks, "usable_cores", lambda: 4)
    asked = {"height": 64, "width": 80, "num_frames": 17, "num_inference_steps": 7, "seed": 5, "fps": 30}
    asked |= {"guidance_scale": 4.5, "negative_prompt": "blue", "scheduler": "euler", "max_sequence_length": 20}
    plan = job(**asked, threads=3, branches_per_call=1).plan
    assert {name: getattr(plan.to_request(), name) for name in asked} == asked
    assert (plan.placements.threads, plan.branches_per_call, plan.geometry.latents_shape) == (3, 1, (4, 5, 8, 10))


def test_numpy_and_other_numbers_are_taken_as_plain_ones(job) -> None:
    plan = job(height=np.int64(64), guidance_scale=np.float32(2.5), flow_shift=Fraction(5, 2), seed=np.uint64(7)).plan
    assert (plan.geometry.height, plan.guidance.scale, plan.seed) == (64, 2.5, 7)
    assert type(plan.geometry.height) is int and type(plan.guidance.scale) is float
    json.dumps(plan.to_dict())


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**64 - 1])
def test_every_seed_that_torch_takes_is_kept(job, seed: int) -> None:
    assert job(seed=seed).plan.seed == seed


def test_without_a_seed_one_is_drawn_each_time(job) -> None:
    assert len({job().plan.seed for _ in range(4)}) == 4


def test_a_prompt_is_cleaned_before_it_is_counted(job) -> None:
    assert job("  a   red &amp;amp; circle ").plan.conditions.prompt == "a red & circle"
    assert (
        job("  a  red\ncircle ").plan.conditions.facts["prompt_tokens"]
        == job("a red circle").plan.conditions.facts["prompt_tokens"]
    )


def test_frames_that_are_streamed_may_be_more_than_the_memory(job, monkeypatch) -> None:
    monkeypatch.setattr(mutoscope.planning.execution, "memory_bytes", lambda: 10**6)
    plan = job(num_frames=253, memory_limit=10**7).plan
    assert math.prod(plan.header.shape) > 10**6 and plan.decoder_tiles == 1


@pytest.mark.parametrize("scheduler", ["unipc", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("config", [{"flow_shift": 3.0}, {"shift": 2.5}, {"flow_shift": 3.0, "shift": 2.0}, {}])
def test_a_plan_names_the_shift_that_gives_its_timesteps_again(job, scheduler: str, config: dict[str, float]) -> None:
    base = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    plan = job(scheduler=scheduler, bundle={"scheduler": base | config}).plan
    assert plan.schedule.flow_shift in (*config.values(), 1.0)
    assert job(
        scheduler=scheduler, flow_shift=plan.schedule.flow_shift, bundle={"scheduler": base}
    ).plan.schedule.timesteps == (plan.schedule.timesteps)
    assert job(scheduler=scheduler, flow_shift=7, bundle={"scheduler": base | config}).plan.schedule.flow_shift == 7.0


@pytest.mark.parametrize("given", [[1, 0.75, 0.5, 0.25], (1, 0.75, 0.5, 0.25), np.array([1, 0.75, 0.5, 0.25])])
def test_levels_of_the_callers_choice_are_shifted_and_say_how_many_steps_there_are(job, given) -> None:
    plan = job(sigmas=given, scheduler="euler", flow_shift=5.0).plan
    np.testing.assert_allclose(plan.schedule.timesteps, [1000, 937.5, 2500 / 3, 625], rtol=1e-6)
    assert plan.schedule.num_inference_steps == 4 and plan.schedule.cache_interval == 1


def test_a_cache_interval_from_numpy_is_a_plain_number_in_the_plan(job) -> None:
    plan = job(cache_interval=np.int64(2), num_inference_steps=8).plan
    assert (
        type(plan.schedule.cache_interval) is int
        and len(plan.schedule.timesteps) < plan.schedule.num_inference_steps == 8
    )


@pytest.mark.parametrize("sigmas", [None, (1, 0.75, 0.5, 0.25), ()])
@pytest.mark.parametrize("own", [None, (0.9, 0.6, 0.3, 0.1)])
def test_the_values_of_a_plan_that_are_of_a_request_ask_for_the_same_again(job, own: Any, sigmas: Any) -> None:
    bundle = {"defaults": {"scheduler": "euler", "sigmas": own, "num_inference_steps": 4}}
    plan = job(bundle=bundle, sigmas=sigmas, flow_shift=5.0, cache_interval=2, seed=3).plan
    again = job(bundle=bundle, **vars(plan.to_request())).plan
    assert again.to_dict() | {"bundle": plan.bundle} == plan.to_dict()
    assert ("evenly spaced" in plan.describe()) == (not plan.schedule.sigmas)


def test_a_distilled_bundle_runs_at_its_own_levels_until_the_caller_names_others(job) -> None:
    bundle = {"defaults": {"scheduler": "lcm", "sigmas": (1.0, 0.75, 0.5, 0.25), "num_inference_steps": 4}}
    assert (
        job(bundle=bundle).plan.schedule.timesteps
        == job(scheduler="lcm", sigmas=(1, 0.75, 0.5, 0.25)).plan.schedule.timesteps
    )
    assert job(bundle=bundle, sigmas=(1, 0.5)).plan.schedule.num_inference_steps == 2
    assert (
        job(bundle=bundle, sigmas=()).plan.schedule.timesteps
        == job(scheduler="lcm", num_inference_steps=4).plan.schedule.timesteps
    )
    with pytest.raises(RequestError, match="there are 4 sigmas for 3 steps"):
        job(bundle=bundle, num_inference_steps=3)


def test_flow_shift_moves_the_timesteps_and_both_names_of_it_agree(job) -> None:
    assert job(flow_shift=3.0).plan.schedule.timesteps == job().plan.schedule.timesteps
    for scheduler in ("unipc", "euler", "dpmpp_2m"):
        low, high = (job(flow_shift=shift, scheduler=scheduler).plan.schedule.timesteps for shift in (1.0, 8.0))
        assert all(a <= b for a, b in zip(low, high, strict=True)) and low != high


def test_guidance_weighs_the_negative_prompt_against_the_prompt(job) -> None:
    made = job(guidance_scale=5.0)
    assert made.plan.guidance.weights == (-4.0, 5.0) and made.plan.branches_per_call == 2
    assert made.plan.conditions.facts["negative_prompt"] == "a black background"
    alone = job("a black background").conditions[0][1].feeds["input_ids"][0]
    np.testing.assert_array_equal(
        made.conditions[0][1].feeds["input_ids"], [alone, job().conditions[0][1].feeds["input_ids"][0]]
    )
    assert made.plan.conditions.facts["prompt_tokens"] == made.conditions[0][1].feeds["attention_mask"][1].sum()


@pytest.mark.parametrize("scale", [0, 0.5, 1])
def test_without_guidance_there_is_one_branch_and_a_given_negative_prompt_is_said_to_be_unused(job, scale) -> None:
    made = job(guidance_scale=scale, negative_prompt="blue", branches_per_call=2)
    assert made.conditions[0][1].feeds["input_ids"].shape == (1, 24)
    assert made.plan.guidance.weights == (1.0,) and made.plan.branches_per_call == 1
    assert made.plan.conditions.facts["negative_prompt"] == ""
    assert any("negative prompt is not used" in note for note in made.plan.notes)
    assert not job(guidance_scale=scale).plan.notes


def test_the_note_of_the_demonstration_is_for_prompts_that_it_does_not_know(job) -> None:
    assert not job("a green circle").plan.notes
    (note,) = job("a green circle in a cage").plan.notes
    assert "red and green circles" in note and "mutoscope export" in note
    assert not job("a dog", bundle={"demonstration": None}).plan.notes


def test_the_first_precision_that_the_backend_runs_is_taken(job, make_bundle) -> None:
    graphs = make_bundle().manifest.graphs

    def with_denoisers(*precisions: str) -> dict[str, Any]:
        bases = dict.fromkeys(map(base_precision, precisions))
        return {
            "graphs": tuple(
                in_precision(graph, precision)
                for graph in graphs
                for precision in (precisions if graph.role == "denoiser" else bases)
            )
        }

    assert job(bundle=with_denoisers("bf16", "int8", "fp32")).plan.placements.precision == "int8"
    assert job(bundle=with_denoisers("int8", "fp32"), precision="fp32").plan.placements.precision == "fp32"
    with pytest.raises(BackendUnavailableError, match="onnxruntime: it does not run graphs in fp16 or fp8"):
        job(bundle=with_denoisers("fp16", "fp8"))


def test_the_latents_of_every_possible_video_lie_in_the_ranges_of_the_symbols(job, make_bundle) -> None:
    manifest = make_bundle().manifest
    smallest = job(height=16, width=16, num_frames=1, scheduler="euler").plan
    largest = job(height=1024, width=1024, num_frames=253, scheduler="unipc", guidance_scale=3.0).plan
    ranges = manifest.symbol_ranges
    assert [ranges[symbol] for symbol in "Fhw"] == list(
        zip(smallest.geometry.latents_shape[1:], largest.geometry.latents_shape[1:], strict=True)
    )
    assert (ranges["B"], ranges["L"]) == ((1, len(largest.guidance.weights)), (1, largest.conditions.lengths["L"]))
    assert ranges["K"] == (
        build_schedule("euler", manifest.scheduler, 8).state_rows,
        job(scheduler="lcm", num_inference_steps=8).plan.schedule.state_rows,
    )


def test_a_plan_prints_every_value_but_its_notes_which_are_for_whoever_prints_it(job) -> None:
    plan = job(guidance_scale=5.0, negative_prompt="blue").plan
    lines = dict(line.split(maxsplit=1) for line in plan.describe().splitlines())
    assert lines.keys() == plan.to_dict().keys() - {"notes"}
    assert lines["latents_shape"] == "4, 3, 4, 6" and lines["guidance_weights"] == "-4, 5"


def test_a_plan_prints_how_much_is_streamed_and_how_often_in_a_step(job) -> None:
    plan = job(guidance_scale=5.0).plan
    for calls, said in ((1, "streamed 200.00 MB,"), (2, "streamed 200.00 MB 2 times in each step,")):
        option = replace(plan.memory.options["denoise"], streamed_bytes=200_000_000, calls_per_step=calls)
        memory = replace(plan.memory, options=plan.memory.options | {"denoise": option})
        assert said in replace(plan, memory=memory).describe()


def test_every_value_of_every_record_of_a_plan_is_in_its_flat_form_once(job) -> None:
    plan = job(guidance_scale=5.0).plan
    values = [getattr(plan, field.name) for field in fields(plan)]
    count = sum(len(fields(value)) if is_dataclass(value) else 1 for value in values)
    count += len(plan.conditions.facts)  # beside a list of their names
    derived = {"branches_per_call", "decoder_window", "decoder_tiles", "memory_peak_bytes"}
    assert len(plan.to_dict().keys() - derived) == count


@pytest.mark.parametrize(
    "asked", [{}, {"guidance_scale": 5.0, "fps": 12.5, "sigmas": (1, 0.6, 0.3), "scheduler": "euler"}]
)
def test_a_plan_comes_back_from_json_as_it_was(job, asked: dict[str, Any]) -> None:
    plan = job(**asked).plan
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert Plan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"height": None}, "Expected `int`, got `null`"),
        ({"height": "32"}, "Expected `int`, got `str`"),
        ({"fps": 1000}, "1000 is not a Fraction"),
        ({"hieght": 32}, "it differs in hieght"),
        ({"conditions": None}, "a Plan is an object with a list of `conditions`"),
        ({"conditions": 5}, "a Plan is an object with a list of `conditions`"),
    ],
)
def test_what_is_no_plan_is_refused(job, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        Plan.from_dict(job().plan.to_dict() | change)


def test_a_value_that_stood_in_the_plan_itself_says_where_it_is_now(job) -> None:
    plan = job().plan
    with pytest.raises(AttributeError, match=r"no 'height'; it is plan\.geometry\.height now"):
        plan.height  # noqa: B018
    with pytest.raises(AttributeError, match=r"no 'colour'$"):
        plan.colour  # noqa: B018


def test_the_recipe_that_goes_into_files_has_the_hash_of_the_bundle_and_not_its_path(job) -> None:
    plan = job("a dog", seed=7).plan
    recipe = json.loads(plan.header.recipe)
    assert plan.notes and plan.bundle not in plan.header.recipe and "notes" not in recipe
    assert (recipe["seed"], recipe["bundle_sha256"], recipe["mutoscope"]) == (7, plan.bundle_sha256, __version__)
    assert (plan.header.title, plan.header.shape, plan.header.fps) == ("a dog", (9, 32, 48, 3), 8)


@pytest.mark.parametrize(
    ("asked", "rate", "plain"),
    [
        (Fraction(24000, 1001), Fraction(24000, 1001), "24000/1001"),
        (24000 / 1001, Fraction(24000, 1001), "24000/1001"),
        (12.5, Fraction(25, 2), "25/2"),
        (30, Fraction(30), 30),
    ],
)
def test_a_rate_stays_exact_in_the_plan_in_json_and_in_the_next_request(job, asked, rate, plain) -> None:
    plan = job(fps=asked).plan
    assert plan.geometry.fps == rate
    written = json.loads(json.dumps(plan.to_request().to_dict()))
    assert written["fps"] == plan.to_dict()["fps"] == plain
    assert job(fps=VideoRequest.from_dict(written).fps).plan.geometry.fps == rate


def test_a_rate_of_the_bundle_is_exact_too(job) -> None:
    assert job(bundle={"defaults": {"fps": "24000/1001"}}).plan.geometry.fps == Fraction(24000, 1001)
