"""The example LoRA brings the built-in model a colour that it does not know, by as much as its strength says."""

from __future__ import annotations

import mutoscope
import pytest
from mutoscope_export.demo.grammar import EVERY_COLOUR
from mutoscope_export.demo.train_lora import LORA

from benchmarks.lora_following import STRENGTHS, distance_to
from benchmarks.prompt_following import judge

PROMPT = "a lime circle moving right on a black background"


@pytest.fixture(scope="module")
def clips():
    with mutoscope.Pipeline.load() as pipeline:
        requests = {
            strength: mutoscope.VideoRequest(prompt=PROMPT, seed=7, loras=[mutoscope.Lora(LORA, strength)])
            for strength in STRENGTHS
        }
        yield {strength: pipeline.generate(request).frames for strength, request in requests.items()}


def test_with_it_the_clip_is_what_the_prompt_says_and_without_it_not(clips) -> None:
    seen = judge(clips[1.0], EVERY_COLOUR)
    assert (seen.colour, seen.shape, seen.motion, seen.background) == ("lime", "circle", "moving right", "black")
    assert judge(clips[0.0], EVERY_COLOUR).colour != "lime"


def test_half_of_it_is_something_between(clips) -> None:
    none, half, whole = (distance_to("lime", clips[strength]) for strength in STRENGTHS)
    assert none > half > whole


def test_its_file_is_small() -> None:
    assert LORA.stat().st_size <= 1_000_000
