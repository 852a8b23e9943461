"""Conditionings become inputs of the denoiser: each graph once, numbers without one; on the fake backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.conditionings import NumberConditioning, TextConditioning
from mutoscope.conditions.text import Tokenizer
from mutoscope.errors import RequestError
from mutoscope_engines.testing import FakeBackend

from tests.bundles import graphs, interfaces, tensors
from tests.runtime.running.functions import FUNCTIONS, PROMPT, embeds_of

FPS = NumberConditioning(name="fps", input="frame_rate", minimum=1, maximum=60)


@pytest.fixture
def told_the_rate(make_bundle: Callable[..., Bundle]) -> Bundle:
    """A denoiser that takes what the text encoder gives under a name of its own, and the frame rate."""
    [prompt] = make_bundle().manifest.texts
    ends = interfaces()
    _, outputs = ends["denoiser"]
    inputs = [each for each in ends["denoiser"][0] if each.name != "prompt_embeds"]
    ends["denoiser"] = (*inputs, *tensors(context=("B", "L", 6), frame_rate=(1,))), outputs
    feeds = {"prompt_embeds": "context"}
    return make_bundle(conditionings=(msgspec.structs.replace(prompt, feeds=feeds), FPS), graphs=graphs(ends))


def denoiser(context: Any, frame_rate: Any, **loop: Any) -> Any:
    return FUNCTIONS["denoiser"](prompt_embeds=context, **loop)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_what_an_encoder_gives_has_the_name_that_the_denoiser_takes_it_by(
    backend: FakeBackend, load: Any, told_the_rate: Bundle, guidance_scale: float
) -> None:
    backend.graphs["denoiser"] = denoiser
    with load(told_the_rate) as pipeline:
        pipeline.generate(PROMPT, fps=24, guidance_scale=guidance_scale)
    negative, positive = embeds_of(told_the_rate)
    fed = [feeds for role, feeds in backend.fed if role == "denoiser"]
    for feeds in fed:  # of each step
        np.testing.assert_array_equal(feeds["context"], [negative, positive] if guidance_scale > 1 else [positive])
        np.testing.assert_array_equal(feeds["frame_rate"], np.array([24], np.float32))
        assert feeds["frame_rate"].dtype == np.float32
    assert len(fed) == 4 and backend.log.count(("run", "text_encoder")) == 1


def test_where_memory_is_short_the_encoder_is_closed_before_the_denoiser_opens(
    backend: FakeBackend, load: Any, told_the_rate: Bundle
) -> None:
    backend.graphs["denoiser"], backend.memory = denoiser, 60_000  # bytes: each stage fits, and not all of them
    with load(told_the_rate) as pipeline:
        assert not pipeline.generate(PROMPT).plan.memory.keep_loaded
    assert backend.log[:4] == [
        ("open", "text_encoder"), ("run", "text_encoder"), ("close", "text_encoder"), ("open", "denoiser"),
    ]  # fmt: skip


@pytest.fixture
def read_twice(make_bundle: Callable[..., Bundle]) -> Bundle:
    """Two encoders read the prompt, the second with spaces as they are and at most 16 tokens of the same tokenizer,
    into one vector a row."""
    [prompt] = make_bundle().manifest.texts
    second = TextConditioning(
        name="prompt", role="text_encoder_2", feeds={"pooled": "pooled"}, max_sequence_length=16, pad_token_id=5,
        negative="negative_prompt", symbol="M",
    )  # fmt: skip
    ends = interfaces()
    inputs, outputs = ends["denoiser"]
    ends["denoiser"] = (*inputs, *tensors(pooled=("B", 3))), outputs
    ends["text_encoder_2"] = tensors(input_ids=("B", "M"), attention_mask=("B", "M")), tensors(pooled=("B", 3))
    return make_bundle(conditionings=(prompt, second), graphs=graphs(ends))


def pooled(input_ids: Any, attention_mask: Any) -> Any:
    counts = attention_mask.sum(1)
    return {"pooled": np.stack([counts, input_ids[:, 0], input_ids[:, -1]], axis=1).astype(np.float32)}


def test_two_encoders_read_the_same_prompt_each_in_its_own_way(
    backend: FakeBackend, load: Any, read_twice: Bundle
) -> None:
    backend.graphs["text_encoder_2"] = pooled
    with load(read_twice) as pipeline:
        plan = pipeline.generate("a red  circle", negative_prompt="", guidance_scale=3.0).plan
        asked = pipeline.plan("a red circle", max_sequence_length=20)
        with pytest.raises(RequestError, match="max_sequence_length must be a whole number from 1 to 24; got 25"):
            pipeline.plan("a red circle", max_sequence_length=25)
    ids = Tokenizer(read_twice, read_twice.manifest.texts[1]).encode({"": "", "a": "a red  circle"}, 16).input_ids
    fed = [feeds for role, feeds in backend.fed if role == "denoiser"]
    for feeds in fed:
        assert feeds["prompt_embeds"].shape == (2, 24, 6)
        np.testing.assert_array_equal(
            feeds["pooled"], [[1, ids[0, 0], 5], [(ids[1] != 5).sum(), ids[1, 0], ids[1, -1]]]
        )
    assert len(fed) == 4
    assert plan.conditions.lengths == {"L": 24, "M": 16} and asked.conditions.lengths == {"L": 20, "M": 16}
    # As the encoders clean it differently, the plan says it as it was given: so the request makes the same video again.
    assert plan.to_request().prompt == "a red  circle"
    counted = [plan.conditions.facts[f"prompt_tokens{number}"] for number in ("", "_2")]
    assert counted == [asked.conditions.facts["prompt_tokens"], (ids[1] != 5).sum()]


def test_a_prompt_too_long_for_one_of_the_encoders_is_refused_with_the_name_of_the_encoder(
    load: Any, read_twice: Bundle
) -> None:
    words = "red circle moving up"
    count = sum(Tokenizer(read_twice, read_twice.manifest.texts[0]).encode({"": words}, 24).counts)
    assert 16 < count <= 24  # which the first reads
    said = rf"prompt has {count} tokens for the text_encoder_2, end mark included; at most 16 fit\. Shorten it by about"
    with load(read_twice) as pipeline, pytest.raises(RequestError, match=said):
        pipeline.plan(words)


def test_where_memory_is_short_one_encoder_after_the_other_is_open(
    backend: FakeBackend, load: Any, read_twice: Bundle
) -> None:
    backend.graphs["text_encoder_2"], backend.memory = pooled, 60_000
    with load(read_twice) as pipeline:
        plan = pipeline.generate(PROMPT).plan
    assert list(plan.memory.options) == ["text_encoder", "text_encoder_2", "denoise", "decode"]
    assert [entry for entry in backend.log if entry[0] != "run"][:5] == [
        ("open", "text_encoder"), ("close", "text_encoder"), ("open", "text_encoder_2"), ("close", "text_encoder_2"),
        ("open", "denoiser"),
    ]  # fmt: skip


def test_with_guidance_a_text_without_a_negative_one_is_encoded_for_both_branches(
    backend: FakeBackend, load: Any, make_bundle: Callable[..., Bundle]
) -> None:
    [prompt] = make_bundle().manifest.texts
    bundle = make_bundle(conditionings=(msgspec.structs.replace(prompt, negative=None),))
    with load(bundle) as pipeline:
        pipeline.generate(PROMPT, guidance_scale=3.0)
    embeds = embeds_of(bundle)[-1]
    fed = [feeds["prompt_embeds"] for role, feeds in backend.fed if role == "denoiser"]
    for each in fed:
        np.testing.assert_array_equal(each, [embeds, embeds])
    assert len(fed) == 4


def test_a_bundle_without_a_prompt_runs_no_encoder(
    backend: FakeBackend, load: Any, make_bundle: Callable[..., Bundle]
) -> None:
    def untold(frame_rate: Any, **loop: Any) -> Any:
        return FUNCTIONS["denoiser"](prompt_embeds=np.zeros((1, 1, 6), np.float32) + frame_rate, **loop)

    backend.graphs["denoiser"] = untold
    ends = interfaces()
    del ends["text_encoder"]
    inputs, outputs = ends["denoiser"]
    ends["denoiser"] = (*(each for each in inputs if each.name != "prompt_embeds"), *tensors(frame_rate=(1,))), outputs
    bundle = make_bundle(conditionings=(FPS,), graphs=graphs(ends), demonstration=None)
    with load(bundle) as pipeline:
        video = pipeline.generate("", fps=30, seed=1)
        with pytest.raises(RequestError, match=r"this model takes no prompt; got 'a dog'. Leave it out"):
            pipeline.plan("a dog")
    assert ("open", "text_encoder") not in backend.log
    assert (video.frames.shape, list(video.plan.memory.options)) == ((9, 32, 48, 3), ["denoise", "decode"])
    assert (video.plan.to_request().prompt, video.plan.to_request().fps) == ("", 30)
