"""How far outputs are apart, against values from the definitions."""

from __future__ import annotations

import numpy as np
import pytest
from mutoscope_bench.difference import Difference, difference


def test_the_error_is_the_norm_of_the_difference_over_that_of_what_was_expected() -> None:
    expected = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)  # of norm 5
    found = difference(np.array([[3.0, 0.3], [0.0, 4.4]], np.float32), expected)  # 0.5 apart
    assert found.relative_error == pytest.approx(0.1) and found.psnr_db is None


def test_frames_that_differ_by_one_step_of_255_everywhere_are_48_decibels_apart() -> None:
    expected = np.full((2, 4, 4, 3), 100, np.uint8)
    assert difference(expected + np.uint8(1), expected) == Difference(0.01, 48.13)  # 20 log10(255)
    assert difference(expected - np.uint8(1), expected) == Difference(0.01, 48.13)


def test_equal_frames_have_no_error_and_no_finite_ratio() -> None:
    frames = np.full((2, 4, 4, 3), 7, np.uint8)
    assert difference(frames, frames) == Difference(0.0, None)


def test_of_what_should_be_nothing_no_relative_error_can_be_told() -> None:
    assert difference(np.ones((1, 2)), np.zeros((1, 2))).relative_error is None


def test_outputs_of_other_shapes_are_not_compared() -> None:
    assert difference(np.ones((1, 2)), np.ones((2, 2))) == Difference(None, None)
