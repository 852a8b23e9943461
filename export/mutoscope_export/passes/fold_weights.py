"""Folds casts, transposes and reshapes of weights into the weights, without computing them.

The new weight is a lazy tensor: its value exists only while it is written, so a graph of any size is folded in no
memory, and no reader of the graph holds a weight twice. One that was narrowed still knows what it was made from, so
that it may be stored as that instead. Knows nothing of what the weights belong to.
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


def lazy(change: Change, source: ir.TensorProtocol, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.LazyTensor:
    """The tensor `change(source)` of the given type and shape, computed anew each time it is read."""
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(change(source.numpy())), dtype=dtype), dtype=dtype, shape=ir.Shape(shape)
    )


def initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """The graph's initializer of this name, made of `tensor` where it is not there yet.

    A weight may be read by several nodes, and what a pass makes of it is stored once.
    """
    if (value := graph.initializers.get(name)) is not None:
        assert (value.shape, value.dtype) == (ir.Shape(tensor.shape), tensor.dtype), name
        return value
    value = ir.Value(name=name, const_value=tensor)
    value.shape, value.dtype = ir.Shape(tensor.shape), tensor.dtype
    graph.register_initializer(value)
    return value


class Folded(ir.LazyTensor):
    """A weight in another type or layout; `exact` is the same in the same layout, before any value was rounded."""

    __slots__ = ("exact",)

    def __init__(self, made: ir.LazyTensor, exact: ir.TensorProtocol) -> None:
        super().__init__(made.raw, made.dtype, made.shape)
        self.exact = exact


def converted(source: ir.TensorProtocol, dtype: ir.DataType) -> Folded:
    """`source` in another type."""
    made = lazy(lambda array: array.astype(dtype.numpy()), source, dtype, source.shape.numpy())
    return Folded(made, exact(source))


def laid_out(change: Change, source: ir.TensorProtocol, shape: tuple[int, ...]) -> Folded:
    """`source` with its values moved by `change`."""
    made, unrounded = (lazy(change, tensor, tensor.dtype, shape) for tensor in (source, exact(source)))
    return Folded(made, unrounded)


def exact(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The values that a tensor was rounded from; itself where nothing is known of that."""
    return tensor.exact if isinstance(tensor, Folded) else tensor


def _form(node: ir.Node) -> tuple[object, ...]:
    """Equal for nodes that make the same of the same weight."""
    return node.op_type, *node.inputs[1:], *((name, str(value.value)) for name, value in node.attributes.items())


def _folded(node: ir.Node) -> Folded | None:
    source = node.inputs[0] if node.inputs else None
    if source is None or not source.is_initializer() or source.const_value is None:
        return None
    if source.is_graph_output() or node.outputs[0].is_graph_output():
        return None
    tensor = source.const_value
    shape = tensor.shape.numpy()
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
