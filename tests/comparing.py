"""How close two clips are, by the formula. What the project measures with is tested against figures of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def psnr_db(given: NDArray[Any], expected: NDArray[Any]) -> float:
    """Of levels 0 to 255; infinite for equal ones."""
    error = np.square(given.astype(np.float64) - expected.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")
