"""Stores weights that lose nothing by it in half precision, and gives them the graph's own type in the graph.

For bundles that must be small: a float16 or bfloat16 checkpoint's float32 graph is half the size on disk and computes
the same. A bfloat16 graph stores the float16 of such a checkpoint, too, so that both read the same bytes. Who loads a
graph folds the casts: ONNX Runtime with a peak of memory about 1.2 times that of the graph without them, TensorRT-RTX
while it builds the engine. Knows nothing of what the weights belong to.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from ..graphs.edit import Tape, exact, initializer, lazy, size_of
from ..graphs.number_formats import HALVES, Array

_SMALLEST_SIZE = 256  # elements
_WIDER = (ir.DataType.FLOAT, ir.DataType.BFLOAT16)  # than float16, the second in range alone


def half_weights(model: ir.Model) -> bool:
    """Puts a `Cast` behind each large initializer whose every value, before it was rounded, is exact in a half type."""
    graph = model.graph
    changed = False
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or value.is_graph_output() or value.dtype not in _WIDER or tensor.size < _SMALLEST_SIZE:
            continue
        unrounded = exact(tensor)
        half = _exact_half(unrounded.numpy())
        if half is None or half == value.dtype:
            continue
        halved = lazy(partial(_rounded, half), unrounded, half, size_of(tensor))
        tape = Tape(graph, graph[0], f"{name}.half")
        cast = tape("Cast", initializer(graph, f"{name}.half", halved), to=value.dtype, dtype=value.dtype)
        value.replace_all_uses_with(cast)
        del graph.initializers[name]
        cast.name, cast.shape = name, value.shape
        changed = True
    return changed


def _rounded(half: ir.DataType, array: Array) -> Array:
    return array.astype(half.numpy())


def _exact_half(array: Array) -> ir.DataType | None:
    with np.errstate(over="ignore"):
        for half in HALVES:
            if np.array_equal(array.astype(half.numpy()).astype(np.float32), array):
                return half
    return None
