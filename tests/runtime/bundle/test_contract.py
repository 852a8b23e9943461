"""A manifest whose graphs do not keep the contract is refused when it is read, in words, before anything runs."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mutoscope.builtin import bundle_path
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.checks import decode_manifest
from mutoscope.bundle.contract import LOOP_INPUTS, ROLES, STAGES
from mutoscope.bundle.manifest import MANIFEST, Frames
from mutoscope.conditions import load_conditions
from mutoscope.errors import BundleError, MutoscopeError
from mutoscope.planning.execution import Execution
from mutoscope.planning.plan import Plan
from mutoscope.planning.planner import make_job
from mutoscope.request import RuntimeOptions, VideoRequest
from mutoscope_engines.testing import FakeBackend

Document = dict[str, Any]
BUILT_IN: Document = json.loads((bundle_path() / MANIFEST).read_text())


def refusal(edit: Callable[[Document], Any]) -> str:
    """The message with which the built-in bundle's manifest is refused after an edit."""
    document = copy.deepcopy(BUILT_IN)
    edit(document)
    with pytest.raises(BundleError) as caught:
        decode_manifest(json.dumps(document).encode())
    assert caught.value.exit_code == 3
    return str(caught.value)


def graph(document: Document, role: str, part: int = 0, precision: str = "bf16") -> Document:
    return next(
        each
        for each in document["graphs"]
        if (each["role"], each["precision"], each.get("part", 0)) == (role, precision, part)
    )


def tensor(document: Document, role: str, name: str) -> Document:
    ends = graph(document, role)
    return next(each for each in (*ends["inputs"], *ends["outputs"]) if each["name"] == name)


def number(name: str, minimum: float, maximum: float) -> Document:
    """A conditioning by a number of the request."""
    return {"kind": "number", "name": name, "input": name, "minimum": minimum, "maximum": maximum}


def test_every_role_belongs_to_a_stage_and_every_stage_has_a_role() -> None:
    assert {role.stage for role in ROLES.values()} == set(STAGES)


def test_denoisers_take_the_loop_inputs_and_only_they_do() -> None:
    assert {name for name, role in ROLES.items() if set(LOOP_INPUTS) <= set(role.takes)} == {"denoiser", "denoiser_low"}


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: graph(d, "denoiser")["outputs"].pop(), "the denoiser in bf16 has no output velocity_peak"),
        (lambda d: graph(d, "denoiser")["inputs"].pop(0), "the denoiser in bf16 has no input latents"),
        (
            lambda d: graph(d, "denoiser")["inputs"].append({"name": "mask", "dtype": "float32", "shape": [1]}),
            "the denoiser in bf16 has the input mask, which nothing feeds",
        ),
        (
            lambda d: graph(d, "vae_decoder_first")["outputs"].append({"name": "x", "dtype": "uint8", "shape": [1]}),
            "the vae_decoder_first in bf16 has the output x, which nothing reads",
        ),
        (
            lambda d: tensor(d, "text_encoder", "input_ids").update(dtype="float32"),
            "has the input input_ids as float32 [B, L]; it must be int64 [B, L]",
        ),
        (
            lambda d: tensor(d, "denoiser", "state").update(shape=["K", 16, "F", "h"]),
            "has the input state as float32 [K, 16",
        ),
        (
            lambda d: tensor(d, "denoiser", "latents").update(shape=[8, "F", "h", "w"]),
            "has the input latents as float32 [8, F",
        ),
        (
            lambda d: tensor(d, "denoiser", "timestep").update(shape=["B"]),
            "has the input timestep as float32 [B]; it must be float32 [1]",
        ),
        (
            lambda d: tensor(d, "denoiser", "solver_b").update(shape=["Q"]),
            "shapes of graphs or draws have the size Q; use numbers, B, F, K, L, R, h, w and their",
        ),
        (
            lambda d: tensor(d, "vae_decoder_next", "frames").update(shape=[8, "16*h", "16*w", 3]),
            "has the output frames as uint8 [8, 16*h, 16*w, 3]; it must be uint8 [4, 16*h, 16*w, 3]",
        ),
        (
            lambda d: tensor(d, "vae_decoder_first", "features").update(shape=[1, 7, "h", "w"]),
            "give and take features as float32 [1, 192, h, w] and float32 [1, 7, h, w]; these must be equal",
        ),
        (
            lambda d: tensor(d, "text_encoder", "prompt_embeds").update(shape=["B", "L", 7]),
            "the text_encoder and the denoiser have prompt_embeds in the shapes [B, L, 128] and [B, L, 7]",
        ),
        (
            lambda d: tensor(d, "vae_features_first", "cache_0").update(dtype="float32"),
            "gives cache_0 as float32; in this precision it must be bfloat16",
        ),
        (
            lambda d: tensor(d, "vae_features_first", "cache_0").update(shape=[3, 16, "h", "w"]),
            "the caches that the vae_features_first in bf16 gives differ from those that the next call takes",
        ),
        (
            lambda d: tensor(d, "vae_features_first", "cache_1").update(name="cache_17"),
            "they must be numbered cache_0, cache_1 and so on",
        ),
        (
            lambda d: graph(d, "denoiser").update(role="upscaler"),
            "graphs have the role upscaler; this Mutoscope knows only the roles denoiser,",
        ),
        (
            lambda d: graph(d, "denoiser").update(precision="fp3"),
            "graphs have the precision fp3; this Mutoscope knows only the precisions bf16,",
        ),
        (
            lambda d: graph(d, "denoiser", 2, "fp32").update(part=3),
            "are numbered 1, 3; a whole graph must be 0, and parts 1, 2 and so on",
        ),
        (
            lambda d: d.update(graphs=[g for g in d["graphs"] if g["role"] != "denoiser"]),
            "no graph has the role denoiser",
        ),
    ],
)
def test_a_graph_that_does_not_keep_the_contract_is_refused(edit: Callable[[Document], Any], said: str) -> None:
    assert said in refusal(edit)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: d["conditionings"][0].update(kind="smell"), "Invalid value 'smell'"),
        (
            lambda d: d["conditionings"][0].update(role="vae_decoder_next"),
            "has the encoder 'vae_decoder_next'; it must be one of text_encoder, text_encoder_2",
        ),
        (
            lambda d: d["conditionings"][0].update(feeds={"prompt_embeds": "state"}),
            "feeds the denoiser's input state, which only the steps may feed",
        ),
        (lambda d: d["conditionings"][0].update(feeds={"embeds": "prompt_embeds"}), "has no output embeds"),
        (lambda d: d["conditionings"][0].update(symbol="B"), "more than one size has the symbol B"),
        (
            lambda d: d["conditionings"].append(d["conditionings"][0]),
            "more than one conditioning has the encoder text_encoder",
        ),
        (lambda d: d["conditionings"][0].update(negative="mood"), "has the negative text 'mood', which has no default"),
        (
            lambda d: d["conditionings"].append(number("seed", 0, 9)),
            "seed is not a number with a default; use one of fps, guidance_scale",
        ),
        (
            lambda d: d["conditionings"].append(number("fps", 10, 60)),
            "the default fps is 8, and the model takes 10 to 60",
        ),
        (lambda d: d["conditionings"].insert(1, number("fps", 0, 1e39)), "`$.conditionings[1].maximum`"),
        (
            lambda d: d["conditionings"].append(d["conditionings"][0] | {"role": "text_encoder_2"}),
            "more than one size has the symbol L; more than one conditioning or draw feeds the denoiser's",
        ),
        (
            lambda d: d["conditionings"].append(
                d["conditionings"][0] | {"role": "text_encoder_2", "feeds": {"a": "b"}, "symbol": "M"}
            ),
            "no graph has the role text_encoder_2; the graph of the denoiser in bf16 has no input b",
        ),
        (lambda d: d.update(conditionings=[]), "has the input prompt_embeds, which nothing feeds"),
        (lambda d: d["files"].pop("tokenizer.json"), "its files do not include tokenizer.json"),
        (lambda d: d.update(experts=[]), "the experts have the roles none; use one or more of denoiser, denoiser_low"),
        (
            lambda d: d.update(experts=[{"role": "text_encoder"}]),
            "the experts have the roles text_encoder; use one or more of denoiser, denoiser_low",
        ),
        (
            lambda d: d.update(experts=[{"role": "denoiser", "above": 500.0}]),
            "above the timesteps 500; each must be lower than the one before, and the last 0",
        ),
        (
            lambda d: d.update(experts=[{"role": "denoiser"}, {"role": "denoiser_low"}]),
            "the experts work above the timesteps 0, 0; each must be lower than the one before",
        ),
        (
            lambda d: (
                d.update(experts=[{"role": "denoiser", "above": 500.0}, {"role": "denoiser_low"}]),
                [graph(d, "denoiser", part, "fp32").update(role="denoiser_low") for part in (1, 2)],
            ),
            "no precision has graphs of every expert: denoiser has bf16, int8; denoiser_low has fp32",
        ),
        (lambda d: d.update(draws=[]), "no draw has the input latents and the shape [16, F, h, w]"),
        (lambda d: d["draws"][0].update(shape=[8, "F", "h", "w"]), "no draw has the input latents"),
        (
            lambda d: d["draws"].append({"input": "prompt_embeds", "shape": [1]}),
            "more than one conditioning or draw feeds the denoiser's input prompt_embeds",
        ),
        (lambda d: d["draws"].append({"input": "x", "shape": ["*"]}), "shapes of graphs or draws have the size *"),
        (lambda d: d["conditionings"][0].update(symbol="8"), "`$.conditionings[0].symbol`"),
        (
            lambda d: d["frames"].update(step=3),
            "the decoder makes 1 in its first call and 4 in every other, and a video must be a whole",
        ),
        (
            lambda d: d["geometry"].update(vae_scale_factor_temporal=8),
            "vae_scale_factor_temporal is 8; it must be 4 / 1",
        ),
        (lambda d: d["frames"].update(most=0), "`$.frames.most`"),
        (lambda d: d["defaults"].update(num_frames=18), "the default num_frames is 18, and the model takes 1 to 253"),
        (lambda d: d["defaults"].update(height=100), "the default height is 100, and the model takes 32 to 2048"),
        (lambda d: d["defaults"].update(scheduler="magic"), "no schedule can be made from the defaults"),
    ],
)
def test_data_that_names_what_nothing_has_is_refused(edit: Callable[[Document], Any], said: str) -> None:
    assert said in refusal(edit)


@pytest.mark.parametrize("version", [1, 2, 3, 5, None])
def test_a_bundle_of_another_format_is_refused_with_the_export_to_run(version: object) -> None:
    assert "with overwrite: mutoscope export CHECKPOINT BUNDLE" in refusal(lambda d: d.update(format_version=version))


def test_frames_and_latent_frames_follow_from_the_calls_of_the_decoder() -> None:
    causal = Frames(first=1, step=4, most=81, frames_per_call=(1, 4))
    assert [causal.latent_frames(count) for count in (1, 5, 81)] == [1, 2, 21]  # (T - 1) / 4 + 1
    by_eight = Frames(first=9, step=8, most=257, frames_per_call=(1, 8))
    assert [by_eight.latent_frames(count) for count in (9, 257)] == [2, 33]
    in_pairs = Frames(first=8, step=8, most=48, frames_per_call=(8, 8), latents_per_call=(2, 2))
    assert [(in_pairs.calls(count), in_pairs.latent_frames(count)) for count in (8, 48)] == [(1, 2), (6, 12)]


STRANGE = (-1, 0, 1, 3, 2**40, 1.5, "", "x", "h", "*", "h*", "float8", None, True, [], {}, [1, -2], "denoiser")


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document that holds a value."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield value, key
            yield from places(each)


def with_a_number() -> Document:
    """The built-in bundle's manifest, with a denoiser that is also told the frame rate."""
    document = copy.deepcopy(BUILT_IN)
    document["provenance"]["files"] = {}  # long, and plain text
    document["conditionings"].append(number("fps", 1, 60))
    for each in document["graphs"]:
        if each["role"] == "denoiser" and any(tensor["name"] == "timestep" for tensor in each["inputs"]):
            each["inputs"].append({"name": "fps", "dtype": "float32", "shape": [1]})
    return document


def plan_of_defaults(bundle: Bundle) -> Plan:
    """The plan of a request that says nothing but its prompt."""
    execution = Execution.choose(RuntimeOptions(backend=FakeBackend({})), bundle)
    return make_job(VideoRequest(prompt="a red circle"), execution, bundle, load_conditions(bundle)).plan


@pytest.mark.parametrize("seed", range(8))
def test_a_manifest_changed_at_random_is_read_or_refused_and_never_fails(seed: int) -> None:
    """One or two values are replaced or removed, 100 times. What is accepted can be planned with, or says why not."""
    draw = random.Random(seed)
    for _ in range(100):
        document, changed = with_a_number(), []
        for _ in range(draw.choice((1, 2))):
            part = draw.choice(sorted(document))  # first, because nearly all places are in the graphs
            holder, key = draw.choice([(document, part), *places(document[part])])
            if draw.random() < 0.2:
                del holder[key]
            else:
                holder[key] = draw.choice(STRANGE)
            changed.append(key)
        try:
            bundle = Bundle(bundle_path(), decode_manifest(json.dumps(document).encode()), "0" * 64)
        except BundleError:
            continue
        try:
            plan = plan_of_defaults(bundle)
        except MutoscopeError as error:
            assert str(error), changed
        else:
            assert plan.geometry.num_frames == bundle.manifest.defaults.num_frames, changed
