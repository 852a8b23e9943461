"""Clips that calibration videos follow: those that were given at the size of the video, and those that are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mutoscope.clips import read_clip
from mutoscope.pictures import Picture
from mutoscope_export.families.clips import drawn, frames_of
from PIL import Image

from tests.runtime.test_clips import lossless


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_the_first_frames_of_a_clip_are_resized_as_pillow_does(tmp_path: Path) -> None:
    clip = noise(7, 16, 32, 3)
    (tmp_path / "clip.mkv").write_bytes(lossless(clip))
    given = frames_of(read_clip(tmp_path / "clip.mkv"), 5, 24, 40)
    expected = [np.asarray(Image.fromarray(each).resize((40, 24), Image.Resampling.LANCZOS)) for each in clip[:5]]
    np.testing.assert_array_equal(given, expected)


def test_a_picture_and_the_last_frame_of_a_short_clip_stand_still() -> None:
    picture, clip = noise(16, 32, 3), noise(2, 16, 32, 3)
    np.testing.assert_array_equal(frames_of(Picture(picture), 3, 16, 32), [picture] * 3)
    np.testing.assert_array_equal(frames_of(read_clip(clip), 4, 16, 32), [clip[0], clip[1], clip[1], clip[1]])


@pytest.mark.parametrize("size", [(5, 48, 80), (1, 16, 16), (9, 80, 48)])
def test_a_drawn_clip_moves_and_has_detail_of_every_size_and_others_differ_from_it(size: tuple[int, int, int]) -> None:
    clip, other = drawn(0, *size), drawn(1, *size)
    assert clip.shape == (*size, 3) and clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, drawn(0, *size))
    assert np.abs(clip.astype(int) - other).mean() > 5
    assert clip.std() > 15
    if size[0] > 1:
        assert np.abs(clip[0].astype(int) - clip[-1]).mean() > 5
    steps = [np.abs(np.diff(clip[0].astype(int), axis=0)).mean(), clip[0].std(axis=0).mean()]
    assert 0.3 < steps[0] < steps[1]  # neighbours differ, but less than pixels far apart, as in photographs
