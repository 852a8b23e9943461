"""Edits of a graph: new nodes in place of others, constants, and weights that are computed while they are written.

Knows the format, and leaves to onnx_ir what it has. Knows nothing of particular operators or models. No edit copies a
weight: what is made of one is a lazy tensor, whose value exists only while it is read. So a graph of any size is edited
in little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .number_formats import Array

Change = Callable[[Array], Array]


class Tape(ir.tape.Tape):
    """onnx_ir's tape, whose nodes stand in front of the node `before` and whose values have names and types.

    `name` begins the names of all its values, so no other value of the graph may begin with it.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node, name: str) -> None:
        super().__init__()
        self.graph, self.before, self.name = graph, before, name

    def __call__(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        dtype: ir.DataType | None = None,
        shape: ir.Shape | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """The output of a new node: of the first input's type where no `dtype` is given, of unknown shape where no
        `shape` is."""
        first = None if inputs[0] is None else inputs[0].dtype
        (output,) = self._write(op_type, inputs, attributes, (dtype or first,), shape, domain)
        return output

    def several(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        dtypes: Sequence[ir.DataType | None],
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """The outputs of a new node, one for each of `dtypes`, of unknown shape."""
        return self._write(op_type, inputs, attributes, dtypes, domain=domain)

    def copy(self, node: ir.Node, *inputs: ir.Value | None, shape: ir.Shape | None = None) -> ir.Value:
        """The output of a node like `node`, which has one, on other inputs."""
        (output,) = self._write(
            node.op_type, inputs, dict(node.attributes), (node.outputs[0].dtype,), shape, node.domain
        )
        return output

    def _write(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any],
        dtypes: Sequence[ir.DataType | None],
        shape: ir.Shape | None = None,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        number = len(self.nodes)
        outputs = self.op_multi_out(op_type, inputs, attributes, num_outputs=len(dtypes), domain=domain)
        for index, (output, dtype) in enumerate(zip(outputs, dtypes, strict=True)):
            output.name = f"{self.name}.{op_type.lower()}_{number}" + (f"_{index}" if index else "")
            output.shape = shape
            if dtype is not None:
                output.dtype = dtype
        self.graph.insert_before(self.before, self.nodes[number])
        return outputs

    def numbers(self, *numbers: int) -> ir.Value:
        """Whole numbers `[len(numbers)]`, as operators take axes and sizes."""
        return constant(self.graph, f"numbers_{'_'.join(map(str, numbers))}", np.array(numbers, np.int64))

    def replace(self, result: ir.Value, *nodes: ir.Node) -> None:
        """Removes `nodes`, which end with `before`. What read the output of `before` reads `result`, which takes its
        name, type and shape."""
        output = self.before.outputs[0]
        ir.convenience.replace_nodes_and_values(self.graph, self.before, nodes or [self.before], [], [output], [result])


def read_through(value: ir.Value, first: ir.Node, result: ir.Value) -> None:
    """Lets everything that reads `value`, but for the node `first`, read `result`, which follows from that node."""
    value.replace_all_uses_with(result, replace_graph_outputs=True)
    first.replace_input_with(0, value)


def constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """The graph's constant of this name; it must have the same value wherever it is asked for."""
    value = initializer(graph, name, ir.Tensor(array))
    assert value.const_value is not None and np.array_equal(value.const_value.numpy(), array), name
    return value


def initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """The graph's initializer of this name, made of `tensor` where there is none yet.

    Several nodes may read one weight, and what a pass makes of it is stored once.
    """
    if (value := graph.initializers.get(name)) is not None:
        assert (value.shape, value.dtype) == (ir.Shape(size_of(tensor)), tensor.dtype), name
        return value
    return ir.tape.Tape(graph).initializer(tensor, name)


def input_of(node: ir.Node, index: int = 0) -> ir.Value:
    """An input that the operator of a node requires."""
    value = node.inputs[index]
    assert value is not None, node
    return value


def producer_of(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that a value comes from, if it is one of these operators."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type in op_types else None


def only_user_of(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 else None


def weight_of(value: ir.Value | None) -> ir.TensorProtocol:
    """The stored tensor of an input that a pass has found to be a weight."""
    assert value is not None and value.const_value is not None
    return value.const_value


def size_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a stored tensor."""
    return tuple(map(int, tensor.shape.numpy()))


def lazy(change: Change, source: ir.TensorProtocol, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.LazyTensor:
    """The tensor `change(source)` of the given type and shape, computed anew each time it is read."""
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(change(source.numpy())), dtype=dtype), dtype=dtype, shape=ir.Shape(shape)
    )


class Derived(ir.LazyTensor):
    """A weight in another type or layout; `exact` is the same in the same layout, before any value was rounded."""

    __slots__ = ("exact",)

    def __init__(self, value: ir.LazyTensor, exact: ir.TensorProtocol) -> None:
        super().__init__(value.raw, value.dtype, value.shape)
        self.exact = exact


def converted(source: ir.TensorProtocol, dtype: ir.DataType) -> Derived:
    """`source` in another type."""
    return Derived(lazy(lambda array: array.astype(dtype.numpy()), source, dtype, size_of(source)), exact(source))


def laid_out(change: Change, source: ir.TensorProtocol, shape: tuple[int, ...]) -> Derived:
    """`source` with its values moved by `change`."""
    moved, unrounded = (lazy(change, tensor, tensor.dtype, shape) for tensor in (source, exact(source)))
    return Derived(moved, unrounded)


def exact(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The values that a tensor was rounded from; the tensor itself where it is not known to be rounded."""
    return tensor.exact if isinstance(tensor, Derived) else tensor
