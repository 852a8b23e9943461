"""The measures of how far an output is from another, against their definitions worked out on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
from mutoscope_bench.difference import difference, psnr_db


def test_psnr_of_equal_clips_is_infinite_and_of_a_step_of_one_48_db() -> None:
    clip = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr_db(clip, clip) == math.inf
    assert psnr_db(clip + np.uint8(1), clip) == pytest.approx(48.13, abs=0.01)
    assert difference(clip + np.uint8(1), clip).psnr_db == 48.13
