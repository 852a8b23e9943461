"""The strip shows each clip in its place, and the committed one is small enough for a README and loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mutoscope_export.demo.grammar import MOTIONS
from PIL import Image

from benchmarks import strip

DOCS = Path(__file__).parents[2] / "docs"


def test_each_clip_has_its_place_above_its_prompt() -> None:
    frames = tuple(np.full((8, 8, 3), 20 * index, np.uint8) for index in range(len(strip.PROMPTS)))
    pixels = np.asarray(strip.picture(frames, strip.PROMPTS))
    step_y, step_x = 16 + strip.LABEL_HEIGHT, 16 + strip.GAP
    assert pixels.shape == (2 * step_y, 4 * step_x - strip.GAP, 3)
    for index in range(len(frames)):
        top, left = index // 4 * step_y, index % 4 * step_x
        assert (pixels[top : top + 16, left : left + 16] == 20 * index).all()
    assert (pixels[16:step_y] < 128).any()  # text


@pytest.mark.parametrize("prompts", [strip.PROMPTS, strip.NEXT_PROMPTS])
def test_there_is_one_prompt_for_each_motion(prompts) -> None:
    assert [sum(motion in prompt for prompt in prompts) for motion in MOTIONS] == [1] * len(MOTIONS)


def test_what_goes_on_from_a_picture_has_the_same_words_but_for_the_motion() -> None:
    def without_motion(prompt: str) -> str:
        (motion,) = (motion for motion in MOTIONS if motion in prompt)
        return prompt.replace(motion, "")

    assert [*map(without_motion, strip.NEXT_PROMPTS)] == [*map(without_motion, strip.PROMPTS)]


@pytest.mark.parametrize("name", ["strip.webp", "strip-pictures.webp"])
def test_the_committed_strip_loops_over_the_17_frames_of_a_clip_and_is_small(name: str) -> None:
    with Image.open(DOCS / name) as animation:
        assert (animation.n_frames, animation.info["loop"]) == (17, 0)
        assert animation.width <= 900
    assert (DOCS / name).stat().st_size < 600_000
