"""Runs each feed-forward on a few slices of its tokens, one slice after the other.

Its inner width is several times that of what it reads, and is the largest value of a transformer: a slice at a time, it
is a fraction of that. Knows a feed-forward by its form: a linear layer to a larger width, operators on each element,
and a linear layer back. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..graphs.edit import Tape, input_of, only_user_of, producer_of, size_of
from .in_turn import waits_for

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
        while before := producer_of(chain[0].inputs[0], "QuantizeLinear", "DequantizeLinear"):
            if len(before.outputs[0].uses()) > 1:
                break
            chain.insert(0, before)
        while (after := only_user_of(chain[-1].outputs[0])) and after.op_type in _ON_EACH_ELEMENT:
            chain.append(after)
        if after is None or _weight_shape(after) != shape[::-1]:
            continue
        chain.append(after)
        bias = only_user_of(after.outputs[0])
        if bias is not None and _adds_a_weight(bias):
            chain.append(bias)
        yield chain


def _adds_a_weight(node: ir.Node) -> bool:
    return node.op_type == "Add" and any(value is not None and value.is_initializer() for value in node.inputs)


def _weight_shape(node: ir.Node) -> tuple[int, ...] | None:
    """Of a `MatMul` by a stored weight `[in, out]`, in FP8 or as it is."""
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    if (source := producer_of(weight, "DequantizeLinear")) is not None:
        weight = source.inputs[0]
    if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return None
    return size_of(weight.const_value)


def _replace(graph: ir.Graph, chain: list[ir.Node], slices: int) -> None:
    whole, last = input_of(chain[0]), chain[-1]
    write = Tape(graph, last, f"{last.outputs[0].name}.slices")
    results: list[ir.Value] = []
    for part in _parts(write, whole, slices):
        results.append(_copied(write, chain, part, results[-1] if results else None))
    joined = write("Concat", *results, axis=1)
    result = write("Slice", joined, write.numbers(0), _tokens(write, whole, 1), write.numbers(1))
    write.replace(result, *chain)


def _parts(write: Tape, whole: ir.Value, slices: int) -> tuple[ir.Value, ...]:
    """`[B, S, E]` -> as many `[B, S / slices, E]`, the last filled up with first tokens."""
    assert whole.shape is not None
    zero, one, count, fill = (write.numbers(number) for number in (0, 1, slices, slices - 1))
    each = write("Div", write("Add", _tokens(write, whole, 1), fill), count)
    first = write("Slice", whole, zero, one, one)
    filled = write("Concat", whole, *[first] * (slices - 1), axis=1)
    filled = write("Slice", filled, zero, write("Mul", each, count), one)
    sizes = write("Concat", _tokens(write, whole, 0), count, each, _tokens(write, whole, 2), axis=0)
    cut = write("Reshape", filled, sizes)
    split = write.several("Split", cut, dtypes=(whole.dtype,) * slices, axis=1, num_outputs=slices)
    shape = ir.Shape([whole.shape[0], None, whole.shape[2]])
    return tuple(write("Squeeze", part, one, shape=shape) for part in split)


def _tokens(write: Tape, value: ir.Value, axis: int) -> ir.Value:
    """The length `[1]` of one axis."""
    return write("Shape", value, dtype=ir.DataType.INT64, start=axis, end=axis + 1)


def _copied(write: Tape, chain: list[ir.Node], part: ir.Value, after: ir.Value | None) -> ir.Value:
    """The chain's nodes once more, on one slice, and not before `after`: the first bias waits for it."""
    fed, value, waiting = input_of(chain[0]), part, after
    assert part.shape is not None
    for node in chain:
        inputs = [value if node.inputs[index] is fed else input_of(node, index) for index in range(len(node.inputs))]
        if waiting is not None and node.op_type == "Add":
            (bias,) = (index for index, one in enumerate(inputs) if one is not value)
            inputs[bias] = waits_for(write.graph, write.before, inputs[bias], waiting)
            waiting = None
        width = (node.outputs[0].shape or ())[2:]
        shape = ir.Shape([*part.shape[:2], *width])
        fed, value = node.outputs[0], write.copy(node, *inputs, shape=shape)
    return value
