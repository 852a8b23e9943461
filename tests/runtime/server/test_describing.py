"""The parameters as clients see them: their limits are those that a plan holds to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mutoscope import Pipeline, RequestError, VideoRequest
from mutoscope.bundle.conditionings import ImageConditioning
from mutoscope.bundle.manifest import Expert
from mutoscope.request import LORAS, OF_CLIPS, PICTURES
from mutoscope.server.describing import describe_parameters
from mutoscope_engines.testing import FakeBackend

from tests.runtime.server.clipping import bundle_that_edits, bundle_with_control, bundle_with_loras
from tests.runtime.server.picturing import bundle_with_pictures
from tests.runtime.server.served import CIRCLE, Served, from_text_alone


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    bundle = from_text_alone(tmp_path_factory.mktemp("from-text") / "bundle")
    with Pipeline.load(bundle.root, backend=FakeBackend(), precision="fp32") as made:
        yield made


def described(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in describe_parameters(pipeline.bundle.manifest)}


def test_every_parameter_is_there_with_its_help(pipeline: Pipeline, shared: Served):
    found = described(pipeline)
    # This model takes no pictures, clips or LoRAs, and has one denoiser.
    unasked = {*PICTURES, *OF_CLIPS, *LORAS, "guidance_scale_2"}
    assert {each.name: each.metadata["help"] for each in fields(VideoRequest) if each.name not in unasked} == {
        name: each["help"] for name, each in found.items()
    }
    assert [name for name, each in found.items() if each["required"]] == ["prompt"]
    [model] = shared.http.get("/v1/models").json()["data"]
    assert model["parameters"] == json.loads(json.dumps(list(found.values())))
    assert (model["default"], model["has_previews"], model["family"]) == (True, True, "wan")
    assert "circle" in model["understands"]


def test_pictures_that_a_model_needs_are_required(pipeline: Pipeline):
    between = ImageConditioning(
        name="image", role="vae_encoder_first", following="vae_encoder_next", feeds={}, given="given",
        last="last_image", last_required=True,
    )  # fmt: skip
    manifest = msgspec.structs.replace(
        pipeline.bundle.manifest, conditionings=(*pipeline.bundle.manifest.conditionings, between)
    )
    assert {each["name"] for each in describe_parameters(manifest) if each["required"]} == {"prompt", *PICTURES}


def test_a_model_with_two_denoisers_takes_a_scale_for_the_second(pipeline: Pipeline):
    two = (Expert(above=875.0), Expert(role="denoiser_low", guidance_scale=3.0))
    found = describe_parameters(msgspec.structs.replace(pipeline.bundle.manifest, experts=two))
    [second] = [each for each in found if each["name"] == "guidance_scale_2"]
    assert (second["type"], second["minimum"], second["maximum"], second["default"]) == ("number", 0, 1000, None)


@pytest.mark.parametrize("required", [False, True])
def test_pictures_are_there_where_the_model_takes_them(required: bool, tmp_path: Path):
    found = describe_parameters(bundle_with_pictures(tmp_path / "bundle", required=required).manifest)
    pictures = [(each["name"], each["required"], each["default"]) for each in found if each["type"] == "picture"]
    assert pictures == [("image", required, None), ("last_image", False, None)]


FILES_OF_MODELS = {
    bundle_that_edits: {"image": "picture", "video": "clip", "strength": "number", "extend": "clip"},
    bundle_with_control: {
        "video": "clip", "mask": "clip_or_picture", "reference_images": "pictures", "conditioning_scale": "scales",
    },
    bundle_with_loras: {},
}  # fmt: skip


@pytest.mark.parametrize("make", FILES_OF_MODELS, ids=lambda make: make.__name__)
def test_clips_and_what_belongs_to_them_are_there_where_the_model_takes_them(make: Any, tmp_path: Path):
    found = {each["name"]: each for each in describe_parameters(make(tmp_path / "bundle").manifest)}
    given = {name: each["type"] for name, each in found.items() if name in (*PICTURES, *OF_CLIPS, *LORAS)}
    assert given == FILES_OF_MODELS[make] and not any(found[name]["required"] for name in given)


def test_loras_are_there_by_name_for_each_denoiser(pipeline: Pipeline):
    manifest = pipeline.bundle.manifest
    two = msgspec.structs.replace(manifest, experts=(Expert(above=875.0), Expert(role="denoiser_low")))
    for each, names, expected in ((manifest, ["a"], ["loras"]), (two, ["a"], ["loras", "loras_2"]), (two, [], [])):
        found = [(one["name"], one["choices"]) for one in describe_parameters(each, names) if one["type"] == "loras"]
        assert found == [(name, names) for name in expected]


def test_the_defaults_are_what_a_plan_takes_where_nothing_is_said(pipeline: Pipeline):
    asked = pipeline.plan(CIRCLE).to_request().to_dict()
    found = {name: each["default"] for name, each in described(pipeline).items()}
    for name in set(asked) - {"prompt", "seed", "sigmas", "max_sequence_length"}:
        assert found[name] == asked[name], name
    assert (found["seed"], found["sigmas"], found["cache_interval"]) == (None, None, 1)


@pytest.mark.parametrize(
    "name",
    ["height", "width", "num_frames", "num_inference_steps", "guidance_scale", "seed", "fps", "flow_shift",
     "cache_interval", "max_sequence_length"],
)  # fmt: skip
def test_what_is_said_to_be_allowed_is_and_nothing_beyond(name: str, pipeline: Pipeline):
    one = described(pipeline)[name]
    small = {"height": 32, "width": 32, "num_frames": 5}
    beyond = one["step"] or (one["maximum"] - one["minimum"]) * 1e-3
    for value in (one["minimum"], one["maximum"]):
        asked = small | {name: value} | ({"prompt": "red"} if name == "max_sequence_length" else {"prompt": CIRCLE})
        if (name, value) != ("max_sequence_length", 1):  # no prompt is so short
            pipeline.plan(VideoRequest(**asked))
    for value in (one["minimum"] - beyond, one["maximum"] + beyond):
        with pytest.raises(RequestError, match=name):
            pipeline.plan(VideoRequest(**(small | {"prompt": CIRCLE, name: value})))
    if one["step"] and one["step"] > 1:
        with pytest.raises(RequestError, match="nearest"):
            pipeline.plan(VideoRequest(**(small | {"prompt": CIRCLE, name: one["minimum"] + 1})))


def test_choices_are_those_of_the_request(pipeline: Pipeline):
    for name in described(pipeline)["scheduler"]["choices"]:
        pipeline.plan(CIRCLE, scheduler=name, num_inference_steps=4)
