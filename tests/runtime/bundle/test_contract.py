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
        (lambda d: graph(d, "denoiser")["outputs"].pop(), "the denoiser in bf16 gives no velocity_peak"),
        (lambda d: graph(d, "denoiser")["inputs"].pop(0), "the denoiser in bf16 takes no latents"),
        (
            lambda d: graph(d, "denoiser")["inputs"].append({"name": "mask", "dtype": "float32", "shape": [1]}),
            "the denoiser in bf16 takes mask, which nothing feeds",
        ),
        (
            lambda d: graph(d, "vae_decoder_first")["outputs"].append({"name": "x", "dtype": "uint8", "shape": [1]}),
            "the vae_decoder_first in bf16 gives x, which nothing reads",
        ),
        (lambda d: tensor(d, "text_encoder", "input_ids").update(dtype="float32"), "takes input_ids as float32 [B, L]"),
        (lambda d: tensor(d, "denoiser", "state").update(shape=["K", 16, "F", "h"]), "takes state as float32 [K, 16"),
        (lambda d: tensor(d, "denoiser", "latents").update(shape=[8, "F", "h", "w"]), "takes latents as float32 [8, F"),
        (lambda d: tensor(d, "denoiser", "timestep").update(shape=["B"]), "takes timestep as float32 [B], not float32"),
        (lambda d: tensor(d, "denoiser", "solver_b").update(shape=["Q"]), "shapes of its graphs and draws name Q"),
        (
            lambda d: tensor(d, "vae_decoder_next", "frames").update(shape=[8, "16*h", "16*w", 3]),
            "gives frames as uint8 [8, 16*h, 16*w, 3], not uint8 [4, 16*h, 16*w, 3]",
        ),
        (
            lambda d: tensor(d, "vae_decoder_first", "features").update(shape=[1, 7, "h", "w"]),
            "do not agree on the shape of the features",
        ),
        (
            lambda d: tensor(d, "text_encoder", "prompt_embeds").update(shape=["B", "L", 7]),
            "do not agree on the shape of prompt_embeds",
        ),
        (lambda d: tensor(d, "vae_features_first", "cache_0").update(dtype="float32"), "gives cache_0 in float32"),
        (
            lambda d: tensor(d, "vae_features_first", "cache_0").update(shape=[3, 16, "h", "w"]),
            "the caches of the vae_features_first in bf16 are not those that the next call takes",
        ),
        (lambda d: tensor(d, "vae_features_first", "cache_1").update(name="cache_17"), "they are numbered from 0"),
        (lambda d: graph(d, "denoiser").update(role="upscaler"), "there are graphs of upscaler; known are"),
        (lambda d: graph(d, "denoiser").update(precision="fp3"), "there are graphs in fp3; known are"),
        (lambda d: graph(d, "denoiser", 2, "fp32").update(part=3), "are numbered 1, 3; one is 0, parts 1, 2"),
        (lambda d: d.update(graphs=[g for g in d["graphs"] if g["role"] != "denoiser"]), "no graph of the denoiser"),
    ],
)
def test_a_graph_that_does_not_keep_the_contract_is_refused(edit: Callable[[Document], Any], said: str) -> None:
    assert said in refusal(edit)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: d["conditionings"][0].update(kind="smell"), "Invalid value 'smell'"),
        (lambda d: d["conditionings"][0].update(role="vae_decoder_next"), "which is no encoder"),
        (lambda d: d["conditionings"][0].update(feeds={"prompt_embeds": "state"}), "changes in each step"),
        (lambda d: d["conditionings"][0].update(feeds={"embeds": "prompt_embeds"}), "gives no embeds"),
        (lambda d: d["conditionings"][0].update(symbol="B"), "two of the symbol B"),
        (lambda d: d["conditionings"].append(d["conditionings"][0]), "two of the conditioning prompt"),
        (lambda d: d["conditionings"][0].update(negative="mood"), "steered away from 'mood', a text that has no"),
        (lambda d: d["conditionings"].append(number("seed", 0, 9)), "seed is no number that has a default; those are"),
        (
            lambda d: d["conditionings"].append(number("fps", 10, 60)),
            "the default fps is 8; its networks take 10 to 60",
        ),
        (lambda d: d["conditionings"].append(number("fps", 0, 1e39)), "`$.conditionings[1].maximum`"),
        (lambda d: d.update(conditionings=[]), "takes prompt_embeds, which nothing feeds"),
        (lambda d: d["files"].pop("tokenizer.json"), "it does not list tokenizer.json"),
        (lambda d: d.update(experts=[]), "the experts are none"),
        (lambda d: d.update(experts=[{"role": "text_encoder"}]), "they are graphs of a denoiser"),
        (lambda d: d.update(experts=[{"role": "denoiser", "above": 500.0}]), "the last from 0"),
        (
            lambda d: d.update(experts=[{"role": "denoiser"}, {"role": "denoiser_low"}]),
            "each works from a lower timestep on than the one before",
        ),
        (lambda d: d.update(draws=[]), "no draw is of the latents [16, F, h, w]"),
        (lambda d: d["draws"][0].update(shape=[8, "F", "h", "w"]), "no draw is of the latents"),
        (lambda d: d["draws"].append({"input": "prompt_embeds", "shape": [1]}), "two of the input of the denoiser"),
        (lambda d: d["draws"].append({"input": "x", "shape": ["*"]}), "shapes of its graphs and draws name *"),
        (lambda d: d["conditionings"][0].update(symbol="8"), "`$.conditionings[0].symbol`"),
        (lambda d: d["frames"].update(step=3), "are no whole calls of a decoder that gives 1 frames and then 4 each"),
        (
            lambda d: d["geometry"].update(vae_scale_factor_temporal=8),
            "vae_scale_factor_temporal is 8, but the decoder makes 4 frames from 1 latent frames",
        ),
        (lambda d: d["frames"].update(most=0), "`$.frames.most`"),
        (lambda d: d["defaults"].update(num_frames=18), "the default num_frames is 18; its networks take 1 to 253"),
        (lambda d: d["defaults"].update(height=100), "the default height is 100; its networks take 32 to 2048"),
        (lambda d: d["defaults"].update(scheduler="magic"), "the defaults give no schedule"),
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
