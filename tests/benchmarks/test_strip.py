"""The strip shows each clip in its place, and the committed one is small enough for a README and loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mutoscope_export.demo.grammar import MOTIONS
from PIL import Image

from benchmarks import strip

STRIP = Path(__file__).parents[2] / "docs/strip.webp"


def test_each_clip_has_its_place_above_its_prompt() -> None:
    frames = tuple(np.full((8, 8, 3), 20 * index, np.uint8) for index in range(len(strip.PROMPTS)))
    pixels = np.asarray(strip.picture(frames))
    step_y, step_x = 16 + strip.LABEL_HEIGHT, 16 + strip.GAP
    assert pixels.shape == (2 * step_y, 4 * step_x - strip.GAP, 3)
    for index in range(len(frames)):
        top, left = index // 4 * step_y, index % 4 * step_x
        assert (pixels[top : top + 16, left : left + 16] == 20 * index).all()
    assert (pixels[16:step_y] < 128).any()  # text


def test_there_is_one_prompt_for_each_motion() -> None:
    assert [sum(motion in prompt for prompt in strip.PROMPTS) for motion in MOTIONS] == [1] * len(MOTIONS)


def test_the_committed_strip_loops_over_the_17_frames_of_a_clip_and_is_small() -> None:
    with Image.open(STRIP) as animation:
        assert (animation.n_frames, animation.info["loop"]) == (17, 0)
        assert animation.width <= 900
    assert STRIP.stat().st_size < 600_000
