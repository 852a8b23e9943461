"""Makes queries, keys and values one after the other, and those of a text where their block needs them.

Linear layers that read the same value are merged by TensorRT-RTX into one. For queries, keys and values that product
stays whole until the last of the three is normed and rotated; for a text that every block attends to, the keys and
values of all blocks are computed before the first of them. Knows linear layers, also in FP8, and what stands between
them and attention. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import onnx_ir as ir

from ..graphs.edit import Tape, input_of, only_user_of, producer_of
from .in_turn import waits_for

_SIDE_BY_SIDE = 3  # queries, keys and values; what more layers read, several blocks read
_FINISHING = ("Add", "Cast", "RMSNormalization", "RotaryEmbedding")


def project_in_turn(model: ir.Model) -> bool:
    """Puts waits between the linear layers that read one value `[B, S, E]`.

    Raises nothing: where there is no such value, nothing changes. Runs before norms are written out, after FP8.
    """
    graph = model.graph
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in _linear_layers(graph):
        readers.setdefault(_source(node), []).append(node)
    changed = False
    for value, layers in readers.items():
        if len(layers) > _SIDE_BY_SIDE:
            _wait_for_their_blocks(graph, value, layers, readers)
        else:
            for earlier, later in pairwise(layers):
                _wait(graph, later, _finished(earlier))
        changed |= len(layers) > 1
    return changed


def _linear_layers(graph: ir.Graph) -> Iterator[ir.Node]:
    """In order, those on tokens: `MatMul` of `[B, S, E]` by a stored weight."""
    for node in list(graph):
        if node.op_type != "MatMul" or node.outputs[0].shape is None or len(node.outputs[0].shape) != 3:
            continue
        weight = input_of(node, 1)
        stored = weight.is_initializer() or producer_of(weight, "DequantizeLinear")
        if stored and input_of(node).shape is not None:
            yield node


def _source(layer: ir.Node) -> ir.Value:
    """What it reads, before it was put through FP8."""
    value = input_of(layer)
    while (producer := producer_of(value, "DequantizeLinear", "QuantizeLinear")) is not None:
        value = input_of(producer)
    return value


def _finished(layer: ir.Node) -> ir.Value:
    """Its result with bias, norm and rotary embedding, as attention takes it."""
    value = layer.outputs[0]
    while (user := only_user_of(value)) is not None and user.op_type in _FINISHING:
        value = user.outputs[0]
    return value


def _wait(graph: ir.Graph, layer: ir.Node, on: ir.Value) -> None:
    """By its weight, which is smaller than what it reads; in FP8, where weights are constants, by what it quantizes."""
    weight = input_of(layer, 1)
    if weight.is_initializer():
        layer.replace_input_with(1, waits_for(graph, layer, weight, on))
        return
    value = waits_for(graph, layer, _source(layer), on)
    tape = Tape(graph, layer, f"{layer.outputs[0].name}.waiting")
    dequantize = producer_of(input_of(layer), "DequantizeLinear")
    quantize = dequantize and producer_of(input_of(dequantize), "QuantizeLinear")
    for node in (quantize, dequantize):
        if node is not None:
            value = tape.copy(node, value, *node.inputs[1:], shape=node.outputs[0].shape)
    layer.replace_input_with(0, value)


def _wait_for_their_blocks(
    graph: ir.Graph, value: ir.Value, layers: list[ir.Node], readers: dict[ir.Value, list[ir.Node]]
) -> None:
    """Each waits for the last layer before it that reads something else: the queries that meet its keys and values."""
    others = {layer for source, group in readers.items() if source is not value for layer in group}
    before: ir.Node | None = None
    waiting: dict[ir.Node, ir.Value] = {}
    for node in list(graph):
        if node in others:
            before = node
        elif node in layers and before is not None and node.inputs[0] is value:
            if before not in waiting:
                bias = next(iter(before.outputs[0].uses())).node
                on = bias.outputs[0] if bias.op_type == "Add" else before.outputs[0]
                waiting[before] = waits_for(graph, node, value, on)
            node.replace_input_with(0, waiting[before])
