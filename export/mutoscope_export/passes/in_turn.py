"""Makes independent parts of a graph run one after the other, by a dependency that changes nothing.

A compiler for GPUs starts everything that it can start, and holds all that comes of it at once: with TensorRT-RTX, two
branches of a network live side by side in memory though nothing is gained by it. Its scheduling cannot be told, but it
keeps to dependencies. So a value waits for another by the sum with "is its first element minus infinity", which is
zero, and which no compiler can know to be zero. What waits must not be large, because the sum is computed.

Knows nothing of models.
"""

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mutoscope_export.passes.static_quantization import constant, describe

_WAITS = ".in_turn"


def waits_for(graph: ir.Graph, before: ir.Node, value: ir.Value, on: ir.Value) -> ir.Value:
    """`value`, not to be had before `on`, which is not empty; in nodes in front of `before`.

    A value that has become minus infinity makes this one wrong by 1: then the network has failed anyhow.
    """
    assert on.shape is not None and on.dtype is not None and value.dtype is not None
    rank = len(on.shape)
    bounds = [constant(graph, f"{name}_of_{rank}", np.full(rank, start)) for name, start in (("first", 0), ("next", 1))]
    axes = constant(graph, f"axes_of_{rank}", np.arange(rank))
    lowest = constant(graph, f"lowest_{on.dtype.name.lower()}", np.array(ml_dtypes.finfo(on.dtype.numpy()).min))
    flat = constant(graph, "one_element", np.array([1]))
    element = ir.node("Slice", [on, *bounds, axes])
    single = ir.node("Reshape", [element.outputs[0], flat])
    below = ir.node("Less", [single.outputs[0], lowest])
    zero = ir.node("Cast", [below.outputs[0]], {"to": value.dtype})
    waiting = ir.node("Add", [value, zero.outputs[0]])
    name = f"{value.name}.after_{on.name}"
    describe(element.outputs[0], f"{name}.element", ir.Shape([1] * rank), on.dtype)
    describe(single.outputs[0], f"{name}.single", ir.Shape([1]), on.dtype)
    describe(below.outputs[0], f"{name}.below", ir.Shape([1]), ir.DataType.BOOL)
    describe(zero.outputs[0], f"{name}.zero", ir.Shape([1]), value.dtype)
    describe(waiting.outputs[0], f"{name}{_WAITS}", value.shape, value.dtype)
    graph.insert_before(before, [element, single, below, zero, waiting])
    return waiting.outputs[0]


def out_of_turn(model: ir.Model) -> bool:
    """Takes every wait out again, for passes that must find a weight where it is used."""
    waiting = [node for node in model.graph if node.outputs[0].name and node.outputs[0].name.endswith(_WAITS)]
    for node in waiting:
        value = node.inputs[0]
        assert value is not None
        node.outputs[0].replace_all_uses_with(value)
    if waiting:
        RemoveUnusedNodesPass()(model)
    return bool(waiting)
