"""Frames per second, exact: 24, 12.5, 24000/1001. Knows how they are written and read."""

from __future__ import annotations

import re
from fractions import Fraction
from numbers import Rational

MAX_FPS = 240
# Containers keep a rate as two numbers of 32 bits, and count time in parts of a second as fine as the first.
MAX_TERM = 1_000_000


def parse_frame_rate(value: object) -> Fraction | None:
    """The exact rate that a value says, or `None` for anything but a rate from 1 to `MAX_FPS`.

    Args:
        value: a number, or text such as "24", "23.976" or "24000/1001". A float stands for the ratio of small numbers
            that it is nearest to, where it is as near as a float can be: the float 24000 / 1001 is 24000/1001.
    """
    rate = Fraction()
    if isinstance(value, str):
        # Bounded first: "1e999999999" would take all memory to compute.
        if re.fullmatch(r"[0-9]{1,7}(/0*[1-9][0-9]{0,6}|\.[0-9]{1,9})?", value):
            rate = Fraction(value)
    elif isinstance(value, float) and 1 <= value <= MAX_FPS:
        nearest = Fraction(value).limit_denominator(MAX_TERM // MAX_FPS)
        rate = nearest if float(nearest) == value else rate
    elif isinstance(value, Rational) and not isinstance(value, bool):
        rate = Fraction(int(value.numerator), int(value.denominator))  # NumPy's integers are no JSON
    return rate if 1 <= rate <= MAX_FPS and rate.numerator <= MAX_TERM else None


def plain_frame_rate(rate: Fraction) -> int | str:
    """As JSON keeps it exactly: a whole number, or text such as "24000/1001"; `parse_frame_rate` reads both."""
    return rate.numerator if rate.denominator == 1 else str(rate)
