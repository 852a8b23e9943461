"""Dynamic int8 for CPUs: the chosen weights as int8, activations quantized to uint8 on the fly, in one or two digits.

Knows the two forms a linear layer has in a graph, `MatMul` and `Gemm`. Knows nothing of models: a pattern over the
weights' names says which to quantize. VNNI instructions multiply unsigned activations by signed weights.
x86 without these adds two neighbouring products in 16 bits (VPMADDUBSW), and saturates. So a column's scale is chosen
such that no two neighbours sum to more than 128, and one graph is exact on every CPU: docs/decisions/0021.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..errors import ExportError
from ..graphs.edit import Tape, initializer, lazy, size_of, weight_of
from ..graphs.number_formats import Array

Digit = tuple[ir.Value, ir.Value, ir.Value]
"""An activation in uint8, its scale and its zero point."""


@dataclass(frozen=True)
class DynamicInt8:
    """A pass that quantizes the linear layers whose weight's name matches `weights` (a regular expression, searched).

    Each output channel has a scale of its own and zero point 0, and weights whose rows 2i and 2i + 1 sum to -128..128.
    Each activation is quantized once, however many layers read it. Weights are quantized while they are written, one at
    a time.

    An activation has one scale for the whole tensor, which its largest values decide. Where these are outliers that
    leave the others too few steps, `digits=2` quantizes what the first rounding lost again, with a scale of its own:
    the weights serve both, 16 bits of the activation are kept, and the products take twice the time.

    Raises:
        ValueError: nothing matches, or a matching weight belongs to something other than a linear layer.
        ExportError: a weight is not finite.
    """

    weights: str
    digits: int = 1

    def __call__(self, model: ir.Model) -> bool:
        graph = model.graph
        chosen = [value for name, value in graph.initializers.items() if re.search(self.weights, name)]
        if not chosen:
            raise ValueError(
                f"no weight matches {self.weights!r}; the graph's weights are named like "
                f"{', '.join(sorted(graph.initializers)[:5])}"
            )
        quantized: dict[ir.Value, list[Digit]] = {}
        weights: dict[tuple[ir.Value, bool], tuple[ir.Value, ir.Value]] = {}
        # In the graph's order, so that the quantization of an activation stands before all that read it.
        for node in list(graph):
            if len(node.inputs) > 1 and node.inputs[1] in chosen:
                _refuse_unless_linear(node)
                _replace(graph, node, self.digits, quantized, weights)
        for weight in chosen:
            for use in weight.uses():
                _refuse_unless_linear(use.node)
        RemoveUnusedNodesPass()(model)
        return True


def _refuse_unless_linear(node: ir.Node) -> None:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    form = {name: node.attributes[name].value for name in ("transA", "alpha", "beta") if name in node.attributes}
    plain = node.op_type == "MatMul" or (
        node.op_type == "Gemm" and form.get("transA", 0) == 0 and form.get("alpha", 1.0) == form.get("beta", 1.0) == 1.0
    )
    if not plain or weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        names = ", ".join(value.name or "" for value in node.inputs if value is not None)
        raise ValueError(
            f"{node.op_type}({names}) cannot run in int8: supported are MatMul and Gemm (transA 0, alpha and beta 1) "
            "by a weight of two dimensions; leave this weight out of the pattern"
        )


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    digits: int,
    quantized: dict[ir.Value, list[Digit]],
    weights: dict[tuple[ir.Value, bool], tuple[ir.Value, ir.Value]],
) -> None:
    """`x @ W (+ bias)` becomes `float(q(x) @ q(W)) * scale(x) * scale(W) (+ bias)`, with a product for each digit."""
    x, weight, bias = (*node.inputs, None)[:3]
    assert x is not None and weight is not None
    write = Tape(graph, node, f"{node.outputs[0].name}.int8")
    if x not in quantized:
        quantized[x] = _quantized(write, x, digits)
    layout = (weight, bool(node.attributes.get_int("transB", 0)))
    if layout not in weights:
        weights[layout] = _quantized_weight(graph, *layout)
    weight_int8, weight_scale = weights[layout]
    parts = []
    for activation, scale, zero_point in quantized[x]:
        product = write("MatMulInteger", activation, weight_int8, zero_point, dtype=ir.DataType.INT32)
        product = write("Cast", product, to=ir.DataType.FLOAT, dtype=ir.DataType.FLOAT)
        parts.append(write("Mul", product, write("Mul", scale, weight_scale)))
    result, *lower = parts
    for part in lower:
        result = write("Add", result, part)
    write.replace(result if bias is None else write("Add", result, bias))


def _quantized(write: Tape, x: ir.Value, digits: int) -> list[Digit]:
    """Each digit is of what those before it lost."""
    found: list[Digit] = []
    types = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
    for digit in range(digits):
        if digit:
            x = write("Sub", x, write("DequantizeLinear", *found[-1], dtype=ir.DataType.FLOAT))
        activation, scale, zero_point = write.several("DynamicQuantizeLinear", x, dtypes=types)
        found.append((activation, scale, zero_point))
    return found


def _quantized_weight(graph: ir.Graph, weight: ir.Value, transposed: bool) -> tuple[ir.Value, ir.Value]:
    """Registers the int8 form `[in, out]` of `weight` and its scales `[out]`."""
    tensor = weight_of(weight)
    scale = _scales(tensor.numpy().T if transposed else tensor.numpy())
    if not np.isfinite(scale).all():
        raise ExportError(f"{weight.name} holds NaN or infinity, which int8 cannot represent. Get the checkpoint again")

    def quantize(array: Array) -> Array:
        columns = array.T if transposed else array
        return np.rint(columns / scale).clip(-127, 127).astype(np.int8)

    shape = size_of(tensor)
    whole = lazy(quantize, tensor, ir.DataType.INT8, shape[::-1] if transposed else shape)
    layout = ".transposed" if transposed else ""
    stored = {"int8": whole, "scale": ir.Tensor(scale)}
    quantized, scales = (initializer(graph, f"{weight.name}.{name}{layout}", tensor) for name, tensor in stored.items())
    return quantized, scales


def _scales(columns: Array) -> Array:
    """For each column of `[in, out]`, the least with which every weight is at most 127 and every two neighbours sum to
    at most 127, before they are rounded."""
    pairs = columns[: len(columns) // 2 * 2].reshape(-1, 2, columns.shape[1])
    largest = np.abs(columns).max(axis=0)
    if len(pairs):
        largest = np.maximum(largest, np.abs(pairs[:, 0] + pairs[:, 1]).max(axis=0))
    scale: Array = largest.astype(np.float32) / 127
    scale[scale == 0] = 1
    return scale
