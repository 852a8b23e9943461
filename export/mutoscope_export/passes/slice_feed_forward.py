"""Runs each feed-forward on a few slices of its tokens, one slice after the other.

Its inner width is several times that of what it reads, and is the largest value of a transformer: a slice at a time, it
is a fraction of that. Knows a feed-forward by its form: a linear layer to a larger width, operators on each element,
and a linear layer back. Knows nothing of models.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mutoscope_export.passes.in_turn import waits_for
from mutoscope_export.passes.static_quantization import constant, describe

_ON_EACH_ELEMENT = ("Add", "Cast", "Gelu", "Mul", "QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class SliceFeedForward:
    """A pass over the feed-forwards of `[B, S, E]` tensors: S is cut into `slices` of equal length.

    Where S is no multiple of that, the last slices compute the first token again, which is then thrown away; so every
    slice has a length that follows from S alone, and a compiler knows its largest.
    """

    slices: int

    def __call__(self, model: ir.Model) -> bool:
        graph = model.graph
        chains = list(_feed_forwards(graph))
        for chain in chains:
            _replace(graph, chain, self.slices)
        if chains:
            RemoveUnusedNodesPass()(model)
        return bool(chains)


def _feed_forwards(graph: ir.Graph) -> Iterator[list[ir.Node]]:
    """The nodes of each, in order, every one but the first fed by the one before it."""
    for node in graph:
        shape = _weight_shape(node)
        if shape is None or shape[1] < 2 * shape[0] or len(node.outputs[0].shape or ()) != 3:
            continue
        chain = [node]
        while (before := chain[0].inputs[0].producer()) and before.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if len(before.outputs[0].uses()) > 1:
                break
            chain.insert(0, before)
        while (after := _only_user(chain[-1])) and after.op_type in _ON_EACH_ELEMENT:
            chain.append(after)
        if after is None or _weight_shape(after) != shape[::-1]:
            continue
        chain.append(after)
        bias = _only_user(after)
        if bias is not None and bias.op_type == "Add" and any(value.is_initializer() for value in bias.inputs):
            chain.append(bias)
        yield chain


def _weight_shape(node: ir.Node) -> tuple[int, ...] | None:
    """Of a `MatMul` by a stored weight `[in, out]`, in FP8 or as it is."""
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    if weight is not None and (source := weight.producer()) and source.op_type == "DequantizeLinear":
        weight = source.inputs[0]
    if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return None
    return tuple(weight.const_value.shape.numpy())


def _only_user(node: ir.Node) -> ir.Node | None:
    uses = node.outputs[0].uses()
    return uses[0].node if len(uses) == 1 else None


def _replace(graph: ir.Graph, chain: list[ir.Node], slices: int) -> None:
    whole, output = chain[0].inputs[0], chain[-1].outputs[0]
    assert whole is not None
    write = _Writer(graph, chain[-1], whole)
    results: list[ir.Value] = []
    for part in write.parts(slices):
        results.append(_copied(graph, chain, part, results[-1] if results else None))
    joined = write("Concat", *results, axis=1)
    tokens = write.size_of(whole, 1)
    result = write("Slice", joined, write.number(0), tokens, write.number(1))
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    describe(result, output.name or "", output.shape, output.dtype)
    output.name = None


def _copied(graph: ir.Graph, chain: list[ir.Node], part: ir.Value, after: ir.Value | None) -> ir.Value:
    """The chain's nodes once more, on one slice, and not before `after`: the first bias waits for it."""
    fed, value = chain[0].inputs[0], part
    waiting = after
    for node in chain:
        inputs = [value if one is fed else one for one in node.inputs]
        if waiting is not None and node.op_type == "Add":
            (bias,) = (index for index, one in enumerate(inputs) if one is not value)
            inputs[bias] = waits_for(graph, chain[-1], inputs[bias], waiting)
            waiting = None
        copy = ir.node(node.op_type, inputs, dict(node.attributes))
        shape = ir.Shape([*part.shape[:2], *node.outputs[0].shape[2:]])
        describe(copy.outputs[0], f"{node.outputs[0].name}.{part.name}", shape, node.outputs[0].dtype)
        graph.insert_before(chain[-1], copy)
        fed, value = node.outputs[0], copy.outputs[0]
    return value


@dataclass
class _Writer:
    """Puts operators in front of a node, and names what they give after the value that is sliced."""

    graph: ir.Graph
    before: ir.Node
    whole: ir.Value
    written: int = 0

    def __call__(self, op_type: str, *inputs: ir.Value, outputs: int = 1, **attributes: int) -> ir.Value:
        return self.several(op_type, *inputs, outputs=1, **attributes)[0]

    def several(self, op_type: str, *inputs: ir.Value, outputs: int, **attributes: int) -> list[ir.Value]:
        node = ir.node(op_type, inputs, attributes or None, num_outputs=outputs)
        for value in node.outputs:
            describe(value, f"{self.whole.name}.slices_{self.written}", None, inputs[0].dtype)
            self.written += 1
        self.graph.insert_before(self.before, node)
        return list(node.outputs)

    def number(self, number: int) -> ir.Value:
        return constant(self.graph, f"number_{number}", np.array([number]))

    def size_of(self, value: ir.Value, axis: int) -> ir.Value:
        size = self("Shape", value, start=axis, end=axis + 1)
        size.dtype = ir.DataType.INT64
        return size

    def parts(self, slices: int) -> list[ir.Value]:
        """`[B, S, E]` -> as many `[B, S / slices, E]`, the last filled up with first tokens."""
        zero, one, count, fill = (self.number(number) for number in (0, 1, slices, slices - 1))
        each = self("Div", self("Add", self.size_of(self.whole, 1), fill), count)
        first = self("Slice", self.whole, zero, one, one)
        filled = self("Concat", self.whole, *[first] * (slices - 1), axis=1)
        filled = self("Slice", filled, zero, self("Mul", each, count), one)
        shape = self("Concat", self.size_of(self.whole, 0), count, each, self.size_of(self.whole, 2), axis=0)
        split = self.several("Split", self("Reshape", filled, shape), outputs=slices, axis=1, num_outputs=slices)
        parts = [self("Squeeze", part, one) for part in split]
        for part in parts:
            part.shape = ir.Shape([self.whole.shape[0], None, self.whole.shape[2]])
        return parts
