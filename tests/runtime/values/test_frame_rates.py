"""Rates as people write them, exact from the request to the bundle."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from mutoscope.values.frame_rates import parse_frame_rate, plain_frame_rate

NTSC = Fraction(24000, 1001)


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        (24, Fraction(24)),
        ("24", Fraction(24)),
        (24.0, Fraction(24)),
        (np.int64(24), Fraction(24)),
        (12.5, Fraction(25, 2)),
        ("12.5", Fraction(25, 2)),
        (23.976, Fraction(2997, 125)),  # as written, which is not 24000/1001
        ("23.976", Fraction(2997, 125)),
        ("24000/1001", NTSC),
        (NTSC, NTSC),
        (24000 / 1001, NTSC),
        (30000 / 1001, Fraction(30000, 1001)),
        ("60000/1001", Fraction(60000, 1001)),
        (np.float64(29.97), Fraction(2997, 100)),
    ],
)
def test_a_rate_is_exactly_what_is_written(value: object, rate: Fraction) -> None:
    assert parse_frame_rate(value) == rate


@pytest.mark.parametrize(
    "value",
    [
        *(
            0,
            -24,
            241,
            0.5,
            "0",
            "0.5",
            "1/2",
            float("nan"),
            float("inf"),
            True,
            None,
            [24],
            b"24",
            "",
            " 24",
            "24 fps",
        ),
        *("24/0", "24/00", "-24", "24/1/1", "1e2", "1e999999999", "24.", ".5", "2_4", "²", "9999999/9999998.5"),
        *(3.141592653589793, Fraction(10**7 + 1, 10**6), "23.976023976", np.True_, 24j),
    ],
)
def test_anything_else_is_none(value: object) -> None:
    assert parse_frame_rate(value) is None


@pytest.mark.parametrize("value", [24, np.int32(24), 12.5, NTSC, "23.976"])
def test_json_keeps_a_rate_and_gives_it_back(value: object) -> None:
    rate = parse_frame_rate(value)
    assert rate is not None
    assert parse_frame_rate(json.loads(json.dumps(plain_frame_rate(rate)))) == rate


def test_a_whole_rate_is_a_number_in_json_and_another_a_ratio() -> None:
    assert json.dumps([plain_frame_rate(Fraction(24)), plain_frame_rate(NTSC)]) == '[24, "24000/1001"]'
