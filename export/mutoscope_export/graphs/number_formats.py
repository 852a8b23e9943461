"""The number formats of 16 bits, and those of eight that weights and activations are quantized to, with a scale beside.

Knows numbers. Knows nothing of graphs, of networks, or of how a scale is found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
TINY = float(np.finfo(np.float32).tiny)  # in place of zero, where something is divided by it


@dataclass(frozen=True)
class NumberFormat:
    """Magnitudes up to `largest`; `smallest` is the least that is held with all bits, or the step between integers."""

    name: str
    dtype: ir.DataType
    largest: float
    smallest: float

    def nearest(self, scaled: Array) -> Array:
        """Each value, already divided by its scale, in this format; beyond the largest, that."""
        rounded = np.rint(scaled) if self.dtype.is_integer() else scaled
        nearest: Array = rounded.clip(-self.largest, self.largest).astype(self.dtype.numpy())
        return nearest

    def scale(self, largest: float, margin: float) -> float:
        """For values up to `largest` in magnitude; `margin` above 1 leaves room for what was not seen."""
        return max(largest * margin / self.largest, TINY)

    @property
    def outlier_bound(self) -> float:
        """Of the largest magnitude over the mean of all. Beyond it, a quarter of the mean is less than `smallest`."""
        return self.largest / self.smallest / 4


E4M3 = NumberFormat("fp8", ir.DataType.FLOAT8E4M3FN, 448.0, 2.0**-6)
INT8 = NumberFormat("int8", ir.DataType.INT8, 127.0, 1.0)
