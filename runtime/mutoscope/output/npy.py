"""NumPy's own file: exact, uncompressed, without room for the plan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..planning.plan import Plan


def write(target: Path, frames: Iterator[NDArray[np.uint8]], plan: Plan, codec: str) -> None:
    """One array uint8 `[T, H, W, 3]`; its header is written first, from the plan."""
    shape = (plan.num_frames, plan.height, plan.width, 3)
    with target.open("xb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for chunk in frames:
            file.write(chunk.data)
