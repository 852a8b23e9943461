"""How far one output is from another. Knows arrays. Knows nothing of what made them."""

from __future__ import annotations

import math
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
    off = norm = 0.0
    for one, other in zip(given, expected, strict=True):
        wanted = other.astype(np.float64)
        off += float(np.square(one - wanted).sum())
        norm += float(np.square(wanted).sum())
    relative = math.sqrt(off / norm) if norm else None
    psnr = None
    if expected.dtype == np.uint8 and off:
        psnr = round(10 * math.log10(255**2 * expected.size / off), 2)
    return Difference(None if relative is None else float(f"{relative:.4g}"), psnr)
