"""The measures of how far an output is from another, against their definitions worked out on paper."""

from __future__ import annotations

import numpy as np
import pytest
from mutoscope_engines.difference import relative, relative_l2, squares


def test_relative_l2_is_of_all_arrays_together() -> None:
    exact = [np.array([3.0], np.float32), np.array([4.0], np.float32)]
    assert relative_l2([(exact[0] + 1, exact[0]), (exact[1], exact[1])]) == pytest.approx(0.2)  # 1 over 5


def test_where_zeros_were_expected_the_difference_counts_as_it_is() -> None:
    assert relative_l2([(np.array([3.0, 4.0]), np.zeros(2))]) == 5.0
    assert relative(0.0, 0.0) == 0.0


def test_numbers_without_a_sign_do_not_wrap_around() -> None:
    assert squares([(np.array([0], np.uint8), np.array([255], np.uint8))]) == (255.0**2, 255.0**2)


def test_what_is_no_number_is_no_small_difference() -> None:
    assert not relative_l2([(np.array([np.nan]), np.array([1.0]))]) < 1
