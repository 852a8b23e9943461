"""Lets a norm read its half precision input twice, so that nothing of it is kept in float32 between the two readings.

RMS normalization over a row first needs the row's mean square and then the row. TensorRT-RTX splits it there where
something else is fused to its end, such as a rotary embedding, and keeps the row as the first half had it: widened to
float32, twice the size of what it was made from. Here the second reading is of the negated row, which is exact and no
common subexpression of the first, and the weight is negated too. Knows nothing of models.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..graphs.edit import Tape, constant, initializer, input_of, lazy, producer_of, size_of, weight_of
from ..graphs.number_formats import HALVES


def norm_from_half(model: ir.Model) -> bool:
    """Writes out each `RMSNormalization` over the last axis of a `Cast` from half precision to float32."""
    graph = model.graph
    changed = False
    for node in list(graph):
        half = _widened_from(node) if node.op_type == "RMSNormalization" else None
        if half is not None:
            _replace(graph, node, half)
            changed = True
    if changed:
        RemoveUnusedNodesPass()(model)
    return changed


def _widened_from(node: ir.Node) -> ir.Value | None:
    cast = producer_of(node.inputs[0], "Cast")
    if cast is None or not input_of(node, 1).is_initializer():
        return None
    source = input_of(cast)
    last_axis = node.attributes.get_int("axis", -1) == -1
    return source if source.dtype in HALVES and last_axis else None


def _replace(graph: ir.Graph, norm: ir.Node, half: ir.Value) -> None:
    """`x / rms(x) * w` becomes `-x / rms(x) * -w`, and each `x` a cast of its own."""
    weight, shape, float32 = input_of(norm, 1), half.shape, ir.DataType.FLOAT
    assert shape is not None
    epsilon = constant(graph, "epsilon", np.array(norm.attributes.get_float("epsilon", 1e-5), np.float32))
    tensor = weight_of(weight)
    negative = initializer(graph, f"{weight.name}.negated", lazy(np.negative, tensor, tensor.dtype, size_of(tensor)))
    row = ir.Shape([*shape[:-1], 1])
    write = Tape(graph, norm, f"{norm.outputs[0].name}.from_half")
    once = write("Cast", half, to=float32, dtype=float32, shape=shape)
    mean = write("ReduceMean", write("Mul", once, once, shape=shape), write.numbers(-1), keepdims=1, shape=row)
    rms = write("Sqrt", write("Add", mean, epsilon, shape=row), shape=row)
    again = write("Cast", write("Neg", half, shape=shape), to=float32, dtype=float32, shape=shape)
    write.replace(write("Mul", write("Div", again, rms, shape=shape), negative))
