"""Folds casts, transposes and reshapes of weights into the weights, without computing them.

The new weight is a lazy tensor: its value exists only while it is written, so a graph of any size is folded in no
memory, and no reader of the graph holds a weight twice. Knows nothing of what the weights belong to.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

Change = Callable[[np.ndarray], np.ndarray]


def fold_weights(model: ir.Model) -> bool:
    """Replaces every `Cast`, `Transpose` and `Reshape` of an initializer by an initializer of the same value.

    A weight used in one form keeps its name. Returns whether anything changed.
    """
    graph = model.graph
    changed = False
    for node in list(graph):
        folded = _folded(node)
        if folded is None:
            continue
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None and source.name is not None
        last_use = len(source.uses()) == 1
        name = source.name if last_use else f"{source.name}.{node.op_type.lower()}_{output.name}"
        output.replace_all_uses_with(weight := ir.Value(name=name, const_value=folded))
        weight.shape, weight.dtype = folded.shape, folded.dtype
        graph.remove(node, safe=True)
        if last_use:
            del graph.initializers[source.name]
        graph.register_initializer(weight)
        changed = True
    if changed:
        RemoveUnusedNodesPass()(model)
    return changed


def lazy(change: Change, source: ir.TensorProtocol, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.LazyTensor:
    """The tensor `change(source)` of the given type and shape, computed anew each time it is read."""
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(change(source.numpy())), dtype=dtype), dtype=dtype, shape=ir.Shape(shape)
    )


def _folded(node: ir.Node) -> ir.LazyTensor | None:
    source = node.inputs[0] if node.inputs else None
    if source is None or not source.is_initializer() or source.const_value is None:
        return None
    if source.is_graph_output() or node.outputs[0].is_graph_output():
        return None
    tensor = source.const_value
    shape = tensor.shape.numpy()
    if node.op_type == "Cast":
        dtype = ir.DataType(node.attributes["to"].as_int())
        return lazy(lambda array: array.astype(dtype.numpy()), tensor, dtype, shape)
    if node.op_type == "Transpose":
        order = tuple(node.attributes["perm"].as_ints())
        return lazy(lambda array: array.transpose(order), tensor, tensor.dtype, tuple(shape[axis] for axis in order))
    new_shape = node.outputs[0].shape
    if node.op_type == "Reshape" and new_shape is not None and new_shape.is_static():
        target = tuple(new_shape.numpy())
        return lazy(lambda array: array.reshape(target), tensor, tensor.dtype, target)
    return None
