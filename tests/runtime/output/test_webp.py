"""Animated WebP, read by Pillow."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from mutoscope.output.video import write_video
from PIL import Image

from tests.runtime.clips import H, T, W, chunked, leftovers, make_header, pillow_frames, scene


@pytest.mark.parametrize("fps", [Fraction(16), Fraction(25, 2), Fraction(24000, 1001)], ids=str)
def test_every_frame_is_there_at_its_time_for_ever(tmp_path: Path, fps: Fraction) -> None:
    path = write_video(tmp_path / "out.webp", chunked(scene()), make_header(fps=fps))
    assert leftovers(tmp_path) == ["out.webp"]
    with Image.open(path) as image:
        assert (image.format, image.n_frames, image.size, image.info["loop"]) == ("WEBP", T, (W, H), 0)
        ends = []
        for number in range(T):
            image.seek(number)
            image.load()
            ends.append(image.info["timestamp"] + image.info["duration"])
    # In whole milliseconds, both the time of a frame and how long it lasts.
    assert ends == pytest.approx([1000 * float((number + 1) / fps) for number in range(T)], abs=2)


@pytest.mark.parametrize("size", [(H, W), (31, 45)])
def test_colours_survive_away_from_edges(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = scene(T, *size)
    found = pillow_frames(write_video(tmp_path / "out.webp", chunked(frames), make_header(T, *size))).astype(int)
    assert found.shape == frames.shape
    for number in range(T):
        block, background = np.s_[number, 12:20, 2 * number + 4 : 2 * number + 12], np.s_[number, 4:28, 40:45]
        for part, most in ((block, 5), (background, 3)):
            assert np.abs((found[part] - frames[part]).mean((0, 1))).max() < most


def test_one_frame_is_a_picture(tmp_path: Path) -> None:
    path = write_video(tmp_path / "out.webp", iter([scene(1)]), make_header(1))
    with Image.open(path) as image:
        assert (image.format, image.n_frames, image.size) == ("WEBP", 1, (W, H))
