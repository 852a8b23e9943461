"""Makes of a graph in half precision one that computes in float32, to be run where half precision cannot be.

ONNX Runtime's CPU has neither attention nor convolution in bfloat16. With `rounded`, every value that the half graph
would hold is rounded to its type by a pair of casts, so the result is that of arithmetic which accumulates in float32,
as tensor cores do; only what happens inside one operator is more exact. Without it, what is left is the effect of the
weights' type alone: where that is none, the graph must agree with its network in float32. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..graphs.edit import read_through
from ..graphs.number_formats import HALVES


@dataclass(frozen=True)
class InFloat32:
    """A pass that widens every value of half precision, inputs and outputs of the graph included."""

    rounded: bool

    def __call__(self, model: ir.Model) -> bool:
        graph = model.graph
        first, *_ = nodes = list(graph)
        constants = [node.outputs[0] for node in nodes if node.op_type == "Constant"]
        changed = False
        for stored in (*graph.initializers.values(), *constants):
            if stored.dtype in HALVES:
                casts = _through_casts(stored, ir.DataType.FLOAT)
                if (producer := stored.producer()) is None:
                    graph.insert_before(first, casts)
                else:
                    graph.insert_after(producer, casts)
                changed = True
        for value in graph.inputs:
            if value.dtype in HALVES:
                graph.insert_before(first, self._widened(value))
                changed = True
        for node in nodes:
            if node.op_type == "Cast" and node.attributes["to"].as_int() in HALVES:
                node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
            for value in node.outputs:
                if value.dtype in HALVES and value not in constants:
                    graph.insert_after(node, self._widened(value))
                    changed = True
        return changed

    def _widened(self, value: ir.Value) -> Sequence[ir.Node]:
        half, value.dtype = value.dtype, ir.DataType.FLOAT
        assert half is not None
        return _through_casts(value, half, ir.DataType.FLOAT) if self.rounded else ()


def _through_casts(value: ir.Value, *dtypes: ir.DataType) -> Sequence[ir.Node]:
    """Casts, yet to be inserted, between `value` and all that reads it; as an output, the last takes its name."""
    tape = ir.tape.Tape()
    last = value
    for dtype in dtypes:
        last = tape.op("Cast", [last], {"to": dtype})
        last.name, last.shape, last.dtype = f"{value.name}.{dtype.name.lower()}", value.shape, dtype
    if tape.nodes:
        is_output = value.is_graph_output()
        read_through(value, tape.nodes[0], last)
        if is_output:
            value.name, last.name = f"{value.name}.exact", value.name
    return tape.nodes
