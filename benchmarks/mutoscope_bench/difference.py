"""How far one output is from another. Knows arrays. Knows nothing of what made them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from mutoscope_engines.difference import psnr_of_mean_square, relative, squares
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
    off, norm = squares(zip(given, expected, strict=True))
    psnr = round(psnr_of_mean_square(off / expected.size), 2) if expected.dtype == np.uint8 and off else None
    return Difference(float(f"{relative(off, norm):.4g}") if norm else None, psnr)


def psnr_db(given: NDArray[Any], expected: NDArray[Any]) -> float:
    """Of frames in levels 0 to 255, all together; infinite for equal ones, and not rounded."""
    off, _ = squares(zip(given, expected, strict=True))
    return psnr_of_mean_square(off / expected.size)
