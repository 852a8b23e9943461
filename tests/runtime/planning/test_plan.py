"""A plan has every default resolved, and a request that cannot be served is refused with the nearest that can."""

import json
from dataclasses import fields
from fractions import Fraction
from typing import Any

import msgspec
import mutoscope.values.checks
import numpy as np
import pytest
from mutoscope.bundle.manifest import base_precision
from mutoscope.conditions.text import Tokenizer
from mutoscope.errors import BackendUnavailableError, BundleError, RequestError
from mutoscope.families import load_family
from mutoscope.planning.execution import Execution
from mutoscope.planning.plan import Job, Plan, make_job, refuse_impossible_defaults
from mutoscope.request import RuntimeOptions, VideoRequest
from mutoscope.solvers.schedule import build_schedule

ASKED = {field.name for field in fields(VideoRequest)} - {"prompt"}


@pytest.fixture
def job(make_bundle):
    """A job for a prompt, from the fields of the request and of the options; `bundle` changes the manifest."""

    def make(prompt: Any = "a red circle", *, bundle: dict[str, Any] | None = None, **given: Any) -> Job:
        # By name: what "auto" would pass over, and say so, depends on what is installed.
        options = {"backend": "onnxruntime"}
        options |= {name: given.pop(name) for name in [field.name for field in fields(RuntimeOptions)] if name in given}
        request = VideoRequest(prompt=prompt, **given)
        made = make_bundle(**bundle or {})
        execution = Execution.choose(RuntimeOptions(**options), made)
        return make_job(request, execution, made, load_family("wan"), Tokenizer(made))

    return make


def test_what_the_request_leaves_open_comes_from_the_bundle(job) -> None:
    plan = job().plan
    assert (plan.height, plan.width, plan.num_frames, plan.fps) == (32, 48, 9, 8)
    assert (plan.scheduler, plan.num_inference_steps, plan.guidance_scale) == ("unipc", 4, 1.0)
    assert (plan.precision, plan.family, plan.max_sequence_length) == ("fp32", "wan", 24)
    assert (plan.guidance_weights, plan.branches_per_call) == ((1.0,), 1)
    assert plan.latents_shape == (4, 3, 4, 6)  # 9 frames are 1 + 2 * 4; a latent pixel is 8 pixels wide
    assert plan.network_tokens == 3 * 2 * 3  # patches of 1 x 2 x 2
    assert len(plan.timesteps) == 4 and plan.threads >= 1 and "onnxruntime" in plan.backend
    assert all(getattr(plan, field.name) is not None for field in fields(Plan))


def test_what_the_request_says_is_done(job, monkeypatch) -> None:
    monkeypatch.setattr(mutoscope.values.checks, "usable_cores", lambda: 4)
    asked = {"height": 64, "width": 80, "num_frames": 17, "num_inference_steps": 7, "seed": 5, "fps": 30}
    asked |= {"guidance_scale": 4.5, "negative_prompt": "blue", "scheduler": "euler", "max_sequence_length": 20}
    plan = job(**asked, threads=3, branches_per_call=1).plan
    assert {name: getattr(plan, name) for name in asked} == asked
    assert (plan.threads, plan.branches_per_call, plan.latents_shape) == (3, 1, (4, 5, 8, 10))


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"height": 721}, "height must be a multiple of 16; got 721; nearest: 720, 736"),
        ({"width": 5}, "width must be a multiple of 16; got 5; nearest: 16"),
        ({"height": 1023}, "nearest: 1008, 1024"),
        ({"height": 1025}, "height must be a whole number from 1 to 1024; got 1025"),
        ({"num_frames": 18}, "num_frames must be 1 more than a multiple of 4; got 18; nearest: 17, 21"),
        ({"num_frames": 2}, "nearest: 1, 5"),
        ({"num_frames": 254}, "num_frames must be a whole number from 1 to 253; got 254"),
        ({"num_frames": 0}, "whole number from 1 to 253; got 0"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number from 1 to 1000; got 0"),
        ({"fps": 1000}, "fps must be a number or a ratio from 1 to 240, such as 24, 12.5 or 24000/1001; got 1000"),
        ({"fps": "24000/1001.5"}, "got '24000/1001.5'"),
        ({"fps": True}, "fps must be a number or a ratio from 1 to 240"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a number from 0 to 1000; got nan"),
        ({"guidance_scale": -1}, "got -1"),
        ({"guidance_scale": 10**400}, "guidance_scale must be a number from 0 to 1000"),
        ({"flow_shift": 0}, "flow_shift must be a number from 0.001 to 1000; got 0"),
        ({"flow_shift": float("inf")}, "got inf"),
        ({"scheduler": "ddim"}, "'ddim'; supported: unipc, euler, dpmpp_2m"),
        ({"scheduler": ["unipc"]}, "supported: unipc, euler, dpmpp_2m"),
        ({"seed": 2**64}, "seed must be a whole number from -9223372036854775808 to 18446744073709551615"),
        ({"max_sequence_length": 25}, "max_sequence_length must be a whole number from 1 to 24; got 25"),
        ({"negative_prompt": ["a"]}, "negative_prompt must be one string; got list"),
        ({"precision": "int8"}, "precision must be one of the bundle's: fp32; got 'int8'"),
        ({"threads": 0}, "threads must be a whole number from 1 to "),
        ({"branches_per_call": 3}, "branches_per_call must be a whole number from 1 to 2; got 3"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(job, asked: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError) as refusal:
        job(**asked)
    assert complaint in str(refusal.value)
    assert refusal.value.exit_code == 2


WHOLE = ("height", "num_frames", "num_inference_steps", "seed", "max_sequence_length", "threads")


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [True, 16.0, "16", np.True_, [16], b"16"])
def test_a_whole_number_is_nothing_else(job, name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{name} must be a whole number"):
        job(**{name: value})


@pytest.mark.parametrize("name", ["guidance_scale", "flow_shift"])
@pytest.mark.parametrize("value", [True, "5", b"5", 5j, [5.0], np.True_])
def test_a_number_is_nothing_else(job, name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{name} must be a number"):
        job(**{name: value})


def test_numpy_and_other_numbers_are_taken_as_plain_ones(job) -> None:
    plan = job(height=np.int64(64), guidance_scale=np.float32(2.5), flow_shift=Fraction(5, 2), seed=np.uint64(7)).plan
    assert (plan.height, plan.guidance_scale, plan.seed) == (64, 2.5, 7)
    assert type(plan.height) is int and type(plan.guidance_scale) is float
    json.dumps(plan.to_dict())


@pytest.mark.parametrize(("num_frames", "nearest"), [(1, "5, 13"), (9, "5, 13"), (17, "13, 21")])
def test_patches_of_two_latent_frames_ask_for_an_even_number_of_them(job, num_frames: int, nearest: str) -> None:
    bundle = {"geometry": {"patch_size": (2, 2, 2)}}
    with pytest.raises(RequestError, match=f"5 more than a multiple of 8; got {num_frames}; nearest: {nearest}"):
        job(num_frames=num_frames, bundle=bundle)
    for allowed in nearest.split(", "):
        assert job(num_frames=int(allowed), bundle=bundle).plan.latents_shape[1] % 2 == 0


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**64 - 1])
def test_every_seed_that_torch_takes_is_kept(job, seed: int) -> None:
    assert job(seed=seed).plan.seed == seed


def test_without_a_seed_one_is_drawn_each_time(job) -> None:
    assert len({job().plan.seed for _ in range(4)}) == 4


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t", "&nbsp;"])
def test_a_prompt_that_says_nothing_is_refused(job, prompt: str) -> None:
    with pytest.raises(RequestError, match="the prompt is empty"):
        job(prompt)


@pytest.mark.parametrize("prompt", [None, 7, b"a red circle", ["a red circle", "a green circle"]])
def test_a_prompt_is_one_string(job, prompt: Any) -> None:
    with pytest.raises(RequestError, match="prompt must be one string"):
        job(prompt)


def test_a_prompt_is_cleaned_before_it_is_counted(job) -> None:
    assert job("  a   red &amp;amp; circle ").plan.prompt == "a red & circle"
    assert job("  a  red\ncircle ").plan.prompt_tokens == job("a red circle").plan.prompt_tokens


def test_a_prompt_that_is_too_long_is_refused_with_its_length_and_the_limit(job) -> None:
    with pytest.raises(RequestError, match=r"^prompt has \d{3} tokens.*at most 24 fit.*'a red circle a red"):
        job("a red circle " * 40)
    with pytest.raises(RequestError, match=r"^negative_prompt has \d{3} tokens"):
        job(negative_prompt="a red circle " * 40, guidance_scale=2.0)


def test_a_prompt_with_bytes_that_are_no_utf8_is_refused_and_a_whole_pair_is_mended(job) -> None:
    for name in ("prompt", "negative_prompt"):
        text = b"a caf\xe9".decode("utf-8", "surrogateescape")  # as the shell's arguments come in
        with pytest.raises(RequestError, match=f"^{name} is no valid Unicode at character 6: .*UTF-8"):
            job(**{name: text})
    assert job("a red \ud83d\udd34").plan.prompt == "a red \U0001f534"


def test_a_video_that_cannot_fit_into_memory_is_refused_with_both_numbers(job, monkeypatch) -> None:
    state, frames = 4 * 4 * (4 * 3 * 4 * 6), 9 * 32 * 48 * 3  # K rows of float32 latents; uint8 pixels
    monkeypatch.setattr(mutoscope.values.checks, "memory_bytes", lambda: state + frames)
    assert job().plan.num_frames == 9
    monkeypatch.setattr(mutoscope.values.checks, "memory_bytes", lambda: state + frames - 1)
    with pytest.raises(RequestError, match=f"{state + frames} bytes of memory, .*; {state + frames - 1} are available"):
        job()


@pytest.mark.parametrize("scheduler", ["unipc", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("config", [{"flow_shift": 3.0}, {"shift": 2.5}, {"flow_shift": 3.0, "shift": 2.0}, {}])
def test_a_plan_names_the_shift_that_gives_its_timesteps_again(job, scheduler: str, config: dict[str, float]) -> None:
    base = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    plan = job(scheduler=scheduler, bundle={"scheduler": base | config}).plan
    assert plan.flow_shift in (*config.values(), 1.0)
    assert job(scheduler=scheduler, flow_shift=plan.flow_shift, bundle={"scheduler": base}).plan.timesteps == (
        plan.timesteps
    )
    assert job(scheduler=scheduler, flow_shift=7, bundle={"scheduler": base | config}).plan.flow_shift == 7.0


@pytest.mark.parametrize("given", ["1, 0.75,0.5,0.25", (1, 0.75, 0.5, 0.25), np.array([1, 0.75, 0.5, 0.25])])
def test_levels_of_the_callers_choice_are_shifted_and_say_how_many_steps_there_are(job, given) -> None:
    plan = job(sigmas=given, scheduler="euler", flow_shift=5.0).plan
    np.testing.assert_allclose(plan.timesteps, [1000, 937.5, 2500 / 3, 625], rtol=1e-6)
    assert plan.num_inference_steps == 4 and plan.cache_interval == 1


def test_a_cache_interval_from_numpy_is_a_plain_number_in_the_plan(job) -> None:
    plan = job(cache_interval=np.int64(2), num_inference_steps=8).plan
    assert type(plan.cache_interval) is int and len(plan.timesteps) < plan.num_inference_steps == 8


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"sigmas": "1;0.5"}, r"sigmas must be numbers with commas between them, such as 1,0.75,0.5; got '1;0.5'"),
        ({"sigmas": 3}, "sigmas must be numbers with commas between them"),
        ({"sigmas": ""}, "sigmas must be numbers with commas between them"),
        ({"sigmas": "1,0.5", "num_inference_steps": 3}, "there are 2 sigmas for 3 steps; give one for each step"),
        ({"sigmas": "0.5,1"}, r"sigmas must fall from at most 1 to above 0; got 0\.5, 1"),
        ({"sigmas": "1,0.5", "scheduler": "dpmpp_2m"}, "dpmpp_2m takes no sigmas"),
        ({"scheduler": "lcm", "num_inference_steps": 9}, "ask for at most 8 steps"),
        ({"cache_interval": 0}, "cache_interval must be a whole number from 1 to 1000; got 0"),
        ({"scheduler": "lcm", "num_inference_steps": 8, "cache_interval": 2}, "cache_interval must be 1 with lcm"),
    ],
)
def test_steps_that_cannot_be_are_refused(job, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        job(**asked)


@pytest.mark.parametrize("sigmas", [None, "1,0.75,0.5,0.25", ()])
@pytest.mark.parametrize("own", [None, (0.9, 0.6, 0.3, 0.1)])
def test_the_values_of_a_plan_that_are_of_a_request_ask_for_the_same_again(job, own: Any, sigmas: Any) -> None:
    bundle = {"defaults": {"scheduler": "euler", "sigmas": own, "num_inference_steps": 4}}
    plan = job(bundle=bundle, sigmas=sigmas, flow_shift=5.0, cache_interval=2, seed=3).plan
    again = job(plan.prompt, bundle=bundle, **{name: getattr(plan, name) for name in ASKED}).plan
    assert again.to_dict() | {"bundle": plan.bundle} == plan.to_dict()
    assert ("evenly spaced" in plan.describe()) == (not plan.sigmas)


def test_a_distilled_bundle_runs_at_its_own_levels_until_the_caller_names_others(job) -> None:
    bundle = {"defaults": {"scheduler": "lcm", "sigmas": (1.0, 0.75, 0.5, 0.25), "num_inference_steps": 4}}
    assert job(bundle=bundle).plan.timesteps == job(scheduler="lcm", sigmas="1,0.75,0.5,0.25").plan.timesteps
    assert job(bundle=bundle, sigmas="1,0.5").plan.num_inference_steps == 2
    assert job(bundle=bundle, sigmas=()).plan.timesteps == job(scheduler="lcm", num_inference_steps=4).plan.timesteps
    with pytest.raises(RequestError, match="there are 4 sigmas for 3 steps"):
        job(bundle=bundle, num_inference_steps=3)


def test_flow_shift_moves_the_timesteps_and_both_names_of_it_agree(job) -> None:
    assert job(flow_shift=3.0).plan.timesteps == job().plan.timesteps
    for scheduler in ("unipc", "euler", "dpmpp_2m"):
        low, high = (job(flow_shift=shift, scheduler=scheduler).plan.timesteps for shift in (1.0, 8.0))
        assert all(a <= b for a, b in zip(low, high, strict=True)) and low != high


def test_guidance_weighs_the_negative_prompt_against_the_prompt(job) -> None:
    made = job(guidance_scale=5.0)
    assert made.plan.guidance_weights == (-4.0, 5.0) and made.plan.branches_per_call == 2
    assert made.plan.negative_prompt == "a black background"
    alone = job("a black background").tokens.input_ids[0]
    np.testing.assert_array_equal(made.tokens.input_ids, [alone, job().tokens.input_ids[0]])
    assert made.plan.prompt_tokens == made.tokens.counts[1]


@pytest.mark.parametrize("scale", [0, 0.5, 1])
def test_without_guidance_there_is_one_branch_and_a_given_negative_prompt_is_said_to_be_unused(job, scale) -> None:
    made = job(guidance_scale=scale, negative_prompt="blue", branches_per_call=2)
    assert made.tokens.input_ids.shape == (1, 24)
    assert made.plan.guidance_weights == (1.0,) and made.plan.branches_per_call == 1
    assert made.plan.negative_prompt == ""
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
                msgspec.structs.replace(graph, precision=precision)
                for graph in graphs
                for precision in (precisions if graph.role == "denoiser" else bases)
            )
        }

    assert job(bundle=with_denoisers("bf16", "int8", "fp32")).plan.precision == "int8"
    assert job(bundle=with_denoisers("int8", "fp32"), precision="fp32").plan.precision == "fp32"
    with pytest.raises(BackendUnavailableError, match="onnxruntime: it does not run graphs in fp16 or fp8"):
        job(bundle=with_denoisers("fp16", "fp8"))


def test_the_latents_of_every_possible_video_lie_in_the_ranges_of_the_symbols(job, make_bundle) -> None:
    manifest = make_bundle().manifest
    smallest = job(height=16, width=16, num_frames=1, scheduler="euler").plan
    largest = job(height=1024, width=1024, num_frames=253, scheduler="unipc", guidance_scale=3.0).plan
    ranges = manifest.symbol_ranges
    assert [ranges[symbol] for symbol in "Fhw"] == list(
        zip(smallest.latents_shape[1:], largest.latents_shape[1:], strict=True)
    )
    assert (ranges["B"], ranges["L"]) == ((1, len(largest.guidance_weights)), (1, largest.max_sequence_length))
    assert ranges["K"] == (
        build_schedule("euler", manifest.scheduler, 8).state_rows,
        job(scheduler="lcm", num_inference_steps=8).plan.state_rows,
    )


def test_a_bundle_whose_defaults_cannot_be_is_refused_as_a_bundle(make_bundle) -> None:
    manifest = make_bundle().manifest
    for change, complaint in (
        ({"num_frames": 18}, r"defaults\.num_frames is 18; its networks take 1 to 253 in steps of 4"),
        ({"scheduler": "heun"}, "give no schedule: .*heun"),
        ({"sigmas": (1.0, 0.5)}, "give no schedule: there are 2 sigmas for 4 steps"),
    ):
        defaults = msgspec.structs.replace(manifest.defaults, **change)
        with pytest.raises(BundleError, match=complaint):
            refuse_impossible_defaults(msgspec.structs.replace(manifest, defaults=defaults), load_family("wan"))


def test_a_plan_prints_every_field_and_is_plain_json(job) -> None:
    plan = job(guidance_scale=5.0, negative_prompt="blue").plan
    lines = dict(line.split(maxsplit=1) for line in plan.describe().splitlines())
    assert set(lines) == {field.name for field in fields(Plan)} - {"notes"}  # notes are for whoever prints the plan
    assert lines["latents_shape"] == "4, 3, 4, 6" and lines["guidance_weights"] == "-4, 5"
    assert json.loads(json.dumps(plan.to_dict())).keys() == {field.name for field in fields(Plan)}


@pytest.mark.parametrize(
    ("asked", "rate", "plain"),
    [
        ("24000/1001", Fraction(24000, 1001), "24000/1001"),
        (12.5, Fraction(25, 2), "25/2"),
        (Fraction(30000, 1001), Fraction(30000, 1001), "30000/1001"),
        ("30", Fraction(30), 30),
    ],
)
def test_a_rate_stays_exact_in_the_plan_in_json_and_in_the_next_request(job, asked, rate, plain) -> None:
    plan = job(fps=asked).plan
    assert plan.fps == rate
    written = json.loads(json.dumps(plan.to_dict()))["fps"]
    assert written == plain and job(fps=written).plan.fps == rate


def test_a_rate_of_the_bundle_is_exact_too(job) -> None:
    assert job(bundle={"defaults": {"fps": "24000/1001"}}).plan.fps == Fraction(24000, 1001)
