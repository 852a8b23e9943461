"""How far one output is from another. Knows arrays. Knows nothing of what made them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pairs = Iterable[tuple[NDArray[Any], NDArray[Any]]]  # what was given and what was expected, of one shape


def relative_l2(pairs: Pairs) -> float:
    """L2 of all differences over that of all that was expected, not rounded."""
    return relative(*squares(pairs))


def relative(off: float, expected: float) -> float:
    """`relative_l2` from the sums that `squares` gives. Where everything expected is 0, L2 of the differences alone."""
    return math.sqrt(off / (expected or 1.0))


def psnr_of_mean_square(mean_square: float) -> float:
    """Of frames in levels 0 to 255, from the mean square of their differences; infinite for equal ones."""
    return 10 * math.log10(255**2 / mean_square) if mean_square else math.inf


def squares(pairs: Pairs) -> tuple[float, float]:
    """The sums of the squares of the differences and of what was expected, in float64; one pair at a time."""
    off = whole = 0.0
    for given, expected in pairs:
        wanted = expected.astype(np.float64)
        off += float(np.square(given.astype(np.float64) - wanted).sum())
        whole += float(np.square(wanted).sum())
    return off, whole
