"""Looks up the position bias of each attention when its queries are there, and not those of all blocks at the start.

A bias `[N, L, L]` follows from a table and the positions alone, so a compiler computes all of them together before the
first block, and holds them: 67 MB a block for 64 heads and 512 tokens. Knows a bias by its form: columns of a stored
table, added to products of queries and keys. Knows nothing of models.
"""

from __future__ import annotations

import onnx_ir as ir

from ..graphs.edit import input_of, producer_of
from .in_turn import waits_for


def bias_in_turn(model: ir.Model) -> bool:
    """Makes each table wait for the queries of the scores that its columns are added to."""
    graph = model.graph
    changed = False
    for node in list(graph):
        if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 1:
            continue
        table = input_of(node)
        if not table.is_initializer():
            continue
        queries = _queries_beside(node.outputs[0])
        if queries is not None:
            node.replace_input_with(0, waits_for(graph, node, table, queries))
            changed = True
    if changed:
        graph.sort()
    return changed


def _queries_beside(bias: ir.Value) -> ir.Value | None:
    """The queries of the first products that this value, with what else is added to it, is added to."""
    while len(bias.uses()) == 1:
        user, place = next(iter(bias.uses()))
        if user.op_type == "Add":
            products = _product(user.inputs[1 - place])
            if products is not None:
                layer = _product(products.inputs[0], through=("Cast", "Mul", "Reshape", "Transpose"))
                return None if layer is None else layer.outputs[0]
        bias = user.outputs[0]
    return None


def _product(value: ir.Value | None, through: tuple[str, ...] = ("Cast",)) -> ir.Node | None:
    """The matrix product that a value comes from; `None` if it is something else."""
    while (node := producer_of(value, *through)) is not None:
        value = node.inputs[0]
    return producer_of(value, "MatMul")
