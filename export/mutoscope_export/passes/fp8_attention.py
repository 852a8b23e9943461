"""Attention with both of its products in FP8, written the way TensorRT fuses it.

Knows the `Attention` node on `[B, S, N x head width]` tensors and the operators it stands for. Knows nothing of models
or of how scales are found. The node itself has no place for a quantization between softmax and the second product, so
it becomes its parts. What the fusion asks of them: half of the softmax scale on the queries and half on the keys, the
keys transposed before they are quantized, and every operand of a product straight from a DequantizeLinear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..graphs.edit import Tape, constant
from ..graphs.number_formats import E4M3
from .static_quantization import quantize_dequantize

PROBABILITY_SCALE = 1 / E4M3.largest  # softmax gives at most 1


@dataclass(frozen=True)
class AttentionScales:
    """Of the three operands as they enter attention, before any softmax scale."""

    queries: float
    keys: float
    values: float


@dataclass(frozen=True)
class Fp8Attention:
    """A pass over the `Attention` nodes whose values come from the weights that are the keys of `scales`.

    Runs before the weights are quantized, so that they still have their names.

    Raises:
        ValueError: no `Attention` node draws its values from a key, or a node has a mask, a cache or other options than
            numbers of heads and a scale.
    """

    scales: Mapping[str, AttentionScales]

    def __call__(self, model: ir.Model) -> bool:
        graph = model.graph
        left = dict(self.scales)
        for node in list(graph):
            if node.op_type == "Attention" and (source := _weight_of_values(node)) in left:
                _replace(graph, node, left.pop(source))
        if left:
            raise ValueError(f"no Attention node has its values from {', '.join(sorted(left)[:3])}")
        RemoveUnusedNodesPass()(model)
        return bool(self.scales)


def _weight_of_values(node: ir.Node) -> str:
    """The name of the weight by which the values of an `Attention` node were projected; "" where it is not plain."""
    value = node.inputs[2]
    while value is not None and (producer := value.producer()) is not None:
        weights = [other for other in producer.inputs[1:2] if other is not None and other.is_initializer()]
        if producer.op_type in ("MatMul", "Gemm") and weights:
            return weights[0].name or ""
        if producer.op_type not in ("Add", "Cast", "Reshape", "MatMul", "Gemm"):
            return ""
        value = producer.inputs[0]
    return ""


def _replace(graph: ir.Graph, node: ir.Node, scales: AttentionScales) -> None:
    _refuse_options(node)
    queries, keys, values = node.inputs[:3]
    assert queries is not None and keys is not None and values is not None and queries.shape is not None
    heads, (*_, channels) = node.attributes["q_num_heads"].as_int(), queries.shape
    assert isinstance(channels, int)
    half = math.sqrt(node.attributes.get_float("scale", 0.0) or (channels // heads) ** -0.5)
    write = Tape(graph, node, f"{node.outputs[0].name}.fp8")
    q = _split(write, _scaled(write, queries, half), heads, [0, 2, 1, 3])
    k = _split(write, _scaled(write, keys, half), heads, [0, 2, 3, 1])
    v = _split(write, values, heads, [0, 2, 1, 3])
    scores = write(
        "MatMul",
        quantize_dequantize(write, q, half * scales.queries, E4M3),
        quantize_dequantize(write, k, half * scales.keys, E4M3),
    )
    probabilities = quantize_dequantize(write, write("Softmax", scores, axis=-1), PROBABILITY_SCALE, E4M3)
    mixed = write("MatMul", probabilities, quantize_dequantize(write, v, scales.values, E4M3))
    write.replace(write("Reshape", write("Transpose", mixed, perm=[0, 2, 1, 3]), write.numbers(0, 0, -1)))


def _scaled(write: Tape, x: ir.Value, factor: float) -> ir.Value:
    assert x.dtype is not None
    name = f"scale_{x.dtype.name.lower()}_{factor:.9g}"
    return write("Mul", x, constant(write.graph, name, np.array(factor, x.dtype.numpy())))


def _split(write: Tape, x: ir.Value, heads: int, order: list[int]) -> ir.Value:
    """`[B, S, N x width]` in `order` of the axes `B S N width`."""
    return write("Transpose", write("Reshape", x, write.numbers(0, 0, heads, -1)), perm=order)


def _refuse_options(node: ir.Node) -> None:
    more_inputs = any(value is not None for value in node.inputs[3:])
    options = set(node.attributes) - {"q_num_heads", "kv_num_heads", "scale"}
    set_to_nothing = {name for name in options if node.attributes[name].value in (0, 0.0)}
    same_heads = node.attributes["q_num_heads"].as_int() == node.attributes["kv_num_heads"].as_int()
    more_outputs = any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
    if more_inputs or more_outputs or options - set_to_nothing or not same_heads:
        raise ValueError(
            f"{node.name or node.op_type} has a mask, a cache, shared heads or options ({', '.join(sorted(options))}), "
            "which its FP8 form does not have; leave this attention out"
        )
