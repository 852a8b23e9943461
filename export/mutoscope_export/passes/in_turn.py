"""Makes independent parts of a graph run one after the other, by a dependency that changes nothing.

A compiler for GPUs starts everything that it can start, and holds all that comes of it at once: with TensorRT-RTX, two
branches of a network live side by side in memory though nothing is gained by it. Its scheduling cannot be told, but it
keeps to dependencies. So a value waits for another by the sum with "is its first element minus infinity", which is
zero, and which no compiler can know to be zero. What waits must not be large, because the sum is computed.

Knows nothing of models.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..graphs.edit import Tape, constant

_WAITS = ".in_turn"


def waits_for(graph: ir.Graph, before: ir.Node, value: ir.Value, on: ir.Value) -> ir.Value:
    """`value`, not to be had before `on`, which is not empty; in nodes in front of `before`.

    A value that has become minus infinity makes this one wrong by 1: then the network has failed anyhow.
    """
    assert on.shape is not None and on.dtype is not None and value.dtype is not None
    rank = len(on.shape)
    type_name, name = on.dtype.name.lower(), f"{value.name}.after_{on.name}"
    least = on.dtype.min  # of the finite ones
    lowest = constant(graph, f"lowest_{type_name}", np.array(least, on.dtype.numpy()))
    write = Tape(graph, before, name)
    ranges = (write.numbers(*numbers) for numbers in ([0] * rank, [1] * rank, range(rank)))
    element = write("Slice", on, *ranges, shape=ir.Shape([1] * rank))
    single = write("Reshape", element, write.numbers(1), shape=ir.Shape([1]))
    below = write("Less", single, lowest, dtype=ir.DataType.BOOL, shape=ir.Shape([1]))
    zero = write("Cast", below, to=value.dtype, dtype=value.dtype, shape=ir.Shape([1]))
    waiting = write("Add", value, zero, shape=value.shape)
    waiting.name = f"{name}{_WAITS}"
    return waiting


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


def waiting_by(value: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None]:
    """What waits, and the zero by whose sum it does, of its type; `value` and nothing if it does not wait."""
    node = None if value is None else value.producer()
    if value is None or node is None or not (value.name or "").endswith(_WAITS):
        return value, None
    return node.inputs[0], node.inputs[1]
