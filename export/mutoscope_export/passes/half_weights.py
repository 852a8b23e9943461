"""Stores weights that lose nothing by it in half precision, and gives them the graph's own type in the graph.

For bundles that must be small: a float16 or bfloat16 checkpoint's float32 graph is half the size on disk and computes
the same. A bfloat16 graph stores the float16 of such a checkpoint, too, so that both read the same bytes. Who loads a
graph folds the casts: ONNX Runtime with a peak of memory about 1.2 times that of the graph without them, TensorRT-RTX
while it builds the engine. Knows nothing of what the weights belong to.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mutoscope_export.graphs.number_formats import HALVES
from mutoscope_export.passes.fold_weights import exact, initializer, lazy

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
        narrow = lazy(lambda array, to=half: array.astype(to.numpy()), unrounded, half, tensor.shape.numpy())
        cast = ir.node("Cast", [initializer(graph, f"{name}.half", narrow)], {"to": value.dtype})
        own = cast.outputs[0]
        value.replace_all_uses_with(own)
        del graph.initializers[name]
        value.name = f"{name}.full"
        own.name, own.shape, own.dtype = name, tensor.shape, value.dtype
        graph.insert_before(graph[0], cast)
        changed = True
    return changed


def _exact_half(array: np.ndarray) -> ir.DataType | None:
    with np.errstate(over="ignore"):
        for half in HALVES:
            if np.array_equal(array.astype(half.numpy()).astype(np.float32), array):
                return half
    return None
