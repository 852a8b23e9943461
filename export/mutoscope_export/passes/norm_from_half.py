"""Lets a norm read its half precision input twice, so that nothing of it is kept in float32 between the two readings.

RMS normalization over a row first needs the row's mean square and then the row. TensorRT-RTX splits it there where
something else is fused to its end, such as a rotary embedding, and keeps the row as the first half had it: widened to
float32, twice the size of what it was made from. Here the second reading is of the negated row, which is exact and no
common subexpression of the first, and the weight is negated too. Knows nothing of models.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mutoscope_export.graphs.number_formats import HALVES
from mutoscope_export.passes.fold_weights import initializer, lazy
from mutoscope_export.passes.static_quantization import constant, describe


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
    cast, weight = node.inputs[0] and node.inputs[0].producer(), node.inputs[1]
    if cast is None or cast.op_type != "Cast" or weight is None or not weight.is_initializer():
        return None
    source = cast.inputs[0]
    last_axis = node.attributes.get_int("axis", -1) == -1
    return source if source is not None and source.dtype in HALVES and last_axis else None


def _replace(graph: ir.Graph, norm: ir.Node, half: ir.Value) -> None:
    """`x / rms(x) * w` becomes `-x / rms(x) * -w`, and each `x` a cast of its own."""
    weight, output = norm.inputs[1], norm.outputs[0]
    assert weight is not None and weight.const_value is not None
    epsilon = constant(graph, "epsilon", np.array(norm.attributes.get_float("epsilon", 1e-5), np.float32))
    axis = constant(graph, "last_axis", np.array([-1]))
    tensor = weight.const_value
    negative = lazy(np.negative, tensor, tensor.dtype, tuple(tensor.shape.numpy()))
    negated = initializer(graph, f"{weight.name}.negated", negative)
    tape: list[ir.Node] = []

    def emit(op_type: str, *inputs: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT, **attributes: int) -> ir.Value:
        tape.append(ir.node(op_type, inputs, attributes or None))
        result = tape[-1].outputs[0]
        describe(result, f"{output.name}.{len(tape)}", None if op_type == "ReduceMean" else half.shape, dtype)
        return result

    once = emit("Cast", half, to=ir.DataType.FLOAT)
    mean = emit("ReduceMean", emit("Mul", once, once), axis, keepdims=1)
    assert half.shape is not None
    mean.shape = ir.Shape([*half.shape[:-1], 1])
    rms = emit("Sqrt", emit("Add", mean, epsilon))
    for value in (rms, rms.producer().inputs[0]):
        value.shape = mean.shape
    again = emit("Cast", emit("Neg", half, dtype=half.dtype), to=ir.DataType.FLOAT)
    result = emit("Mul", emit("Div", again, rms), negated)
    graph.insert_before(norm, tape)
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    result.name, output.name = output.name, None
    graph.remove(norm, safe=True)
