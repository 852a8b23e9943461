"""Folds casts, transposes and reshapes of weights into the weights, without computing them.

The new weight is a lazy tensor: its value exists only while it is written, so a graph of any size is folded in no
memory, and no reader of the graph holds a weight twice. A rounded weight still knows what it was made from, so
that it may be stored as that instead. Knows nothing of what the weights belong to.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from .edit import Derived, converted, initializer, laid_out, size_of


def fold_weights(model: ir.Model) -> bool:
    """Replaces every `Cast`, `Transpose` and `Reshape` of an initializer by an initializer of the same value.

    A weight used in one form keeps its name. Returns whether anything changed.
    """
    graph = model.graph
    changed = False
    for node in list(graph):
        folded = _folded(node) if node.graph is graph else None  # one that was like an earlier one is gone
        if folded is None:
            continue
        source = node.inputs[0]
        assert source is not None and source.name is not None
        users = (use.node for use in source.uses())
        alike = [each for each in users if _form(each) == _form(node) and not each.outputs[0].is_graph_output()]
        name = f"{source.name}.{node.op_type.lower()}_{node.outputs[0].name}"
        if len(alike) == len(source.uses()):
            name = source.name
            del graph.initializers[name]
        weight = initializer(graph, name, folded)
        for each in alike:
            each.outputs[0].replace_all_uses_with(weight)
            graph.remove(each, safe=True)
        changed = True
    if changed:
        RemoveUnusedNodesPass()(model)
    return changed


def _form(node: ir.Node) -> tuple[object, ...]:
    """Equal for nodes that make the same of the same weight."""
    return node.op_type, *node.inputs[1:], *((name, str(value.value)) for name, value in node.attributes.items())


def _folded(node: ir.Node) -> Derived | None:
    source = node.inputs[0] if node.inputs else None
    if source is None or not source.is_initializer() or source.const_value is None:
        return None
    if source.is_graph_output() or node.outputs[0].is_graph_output():
        return None
    tensor = source.const_value
    shape = size_of(tensor)
    if node.op_type == "Cast":
        return converted(tensor, ir.DataType(node.attributes["to"].as_int()))
    if node.op_type == "Transpose":
        order = tuple(node.attributes["perm"].as_ints())
        return laid_out(lambda array: array.transpose(order), tensor, tuple(shape[axis] for axis in order))
    new_shape = node.outputs[0].shape
    if node.op_type == "Reshape" and new_shape is not None and new_shape.is_static():
        target = tuple(new_shape.numpy())
        return laid_out(lambda array: array.reshape(target), tensor, target)
    return None
