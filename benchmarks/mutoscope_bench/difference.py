"""How far one output is from another. Knows arrays. Knows nothing of what made them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Difference:
    """`relative_error`: L2 of the difference over that of what was expected. `psnr_db`: of uint8 frames, else None."""

    relative_error: float | None
    psnr_db: float | None


def difference(given: NDArray[Any], expected: NDArray[Any]) -> Difference:
    """One entry of the leading axis at a time, so that long videos need little memory.

    Where the shapes differ, there is nothing to compare, and both figures are None.
    """
    if given.shape != expected.shape:
        return Difference(None, None)
    off, norm = _squares(zip(given, expected, strict=True))
    psnr = round(_psnr_db(off / expected.size), 2) if expected.dtype == np.uint8 and off else None
    return Difference(float(f"{math.sqrt(off / norm):.4g}") if norm else None, psnr)


def relative_l2(pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> float:
    """Of pairs of given and expected arrays: L2 of all differences over that of all that was expected; not rounded."""
    off, norm = _squares(pairs)
    return math.sqrt(off / norm)


def psnr_db(given: NDArray[Any], expected: NDArray[Any]) -> float:
    """Of frames in levels 0 to 255, all together; infinite for equal ones, and not rounded."""
    off, _ = _squares(zip(given, expected, strict=True))
    return _psnr_db(off / expected.size)


def _psnr_db(mean_squared_error: float) -> float:
    return 10 * math.log10(255**2 / mean_squared_error) if mean_squared_error else math.inf


def _squares(pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> tuple[float, float]:
    """The sums of the squares of the differences and of what was expected."""
    off = norm = 0.0
    for given, expected in pairs:
        wanted = expected.astype(np.float64)
        off += float(np.square(given - wanted).sum())
        norm += float(np.square(wanted).sum())
    return off, norm
