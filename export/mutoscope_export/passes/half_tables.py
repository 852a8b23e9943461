"""Stores embedding tables in half precision and widens the rows that are looked up.

A row that no prompt names is then never read: the file is mapped into memory, and a table of some gigabytes costs the
pages of its few rows. Knows nothing of what the tables belong to.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graphs.edit import Tape, exact, initializer, lazy, size_of, weight_of
from ..graphs.number_formats import HALVES, Array

_ROWS = 4096  # looked at at once, so that no copy of a table is made


def half_tables(model: ir.Model) -> bool:
    """Turns each `Gather` of a float32 initializer's rows into one of half precision with a `Cast` behind it.

    The type is float16 or bfloat16, whichever loses less: nothing where the checkpoint has the table in it.
    """
    changed = False
    for node in list(model.graph):
        table = node.inputs[0] if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0 else None
        if table is None or table.const_value is None or table.dtype != ir.DataType.FLOAT or not _is_table(table):
            continue
        _halve(model.graph, node, table)
        changed = True
    return changed


def _is_table(value: ir.Value) -> bool:
    """Rows that are looked up and nothing else."""
    return (
        value.is_initializer()
        and not value.is_graph_output()
        and len(size_of(weight_of(value))) == 2
        and all(use.node.op_type == "Gather" and use.idx == 0 for use in value.uses())
    )


def _halve(graph: ir.Graph, node: ir.Node, table: ir.Value) -> None:
    tensor = exact(weight_of(table))
    half = _nearest_half(tensor.numpy())
    halved = lazy(lambda array: array.astype(half.numpy()), tensor, half, size_of(tensor))
    stored = initializer(graph, f"{table.name}.half", halved)
    tape = Tape(graph, node, f"{node.outputs[0].name}.half")
    rows = tape("Gather", stored, node.inputs[1], axis=0, shape=node.outputs[0].shape)
    tape.replace(tape("Cast", rows, to=ir.DataType.FLOAT, dtype=ir.DataType.FLOAT))
    if not table.uses():
        del graph.initializers[str(table.name)]


def _nearest_half(table: Array) -> ir.DataType:
    def lost(dtype: np.dtype) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            parts = (table[start : start + _ROWS] for start in range(0, len(table), _ROWS))
            wide = (part.astype(np.float32) for part in parts)
            return max(float(np.abs(part - part.astype(dtype).astype(np.float32)).max(initial=0.0)) for part in wide)

    return min(HALVES, key=lambda half: lost(half.numpy()))
