"""Dynamic int8 for CPUs: the chosen weights as int8, activations quantized to uint8 on the fly, in one or two digits.

Knows the two forms a linear layer has in a graph, `MatMul` and `Gemm`. Knows nothing of models: a pattern over the
weights' names says which to narrow. Unsigned activations with signed weights are the operands of the VNNI instructions.
x86 without these adds two neighbouring products in 16 bits (VPMADDUBSW), and saturates. So a column's scale is chosen
such that no two neighbours sum to more than 128, and one graph is exact on every CPU: docs/decisions/0021.
"""

import re
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mutoscope_export.errors import ExportError
from mutoscope_export.passes.fold_weights import initializer, lazy


@dataclass(frozen=True)
class DynamicInt8:
    """A pass that narrows the linear layers whose weight's name matches `weights` (a regular expression, searched).

    Each output channel has a scale of its own and zero point 0, and weights whose rows 2i and 2i + 1 sum to -128..128.
    Each activation is quantized once, however many layers read it. Weights are quantized while they are written, one at
    a time.

    An activation has one scale for the whole tensor, which its largest values decide. Where these are outliers that
    leave the others too few steps, `digits=2` quantizes what the first rounding lost again, with a scale of its own:
    the weights serve both, 16 bits of the activation are kept, and the products take twice the time.

    Raises ValueError when nothing matches, or a matching weight belongs to something other than a linear layer, and
    ExportError for a weight that is not finite.
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
        quantized: dict[ir.Value, list[tuple[ir.Value, ...]]] = {}
        narrowed: dict[tuple[ir.Value, bool], tuple[ir.Value, ir.Value]] = {}
        # In the graph's order, so that the quantization of an activation stands before all that read it.
        for node in list(graph):
            if len(node.inputs) > 1 and node.inputs[1] in chosen:
                _refuse_unless_linear(node)
                _replace(graph, node, self.digits, quantized, narrowed)
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
    quantized: dict[ir.Value, list[tuple[ir.Value, ...]]],
    narrowed: dict[tuple[ir.Value, bool], tuple[ir.Value, ir.Value]],
) -> None:
    """`x @ W (+ bias)` becomes `float(q(x) @ q(W)) * scale(x) * scale(W) (+ bias)`, with a product for each digit."""
    x, weight, bias = (*node.inputs, None)[:3]
    output = node.outputs[0]
    assert x is not None and weight is not None
    tape: list[ir.Node] = []

    def emit(
        op_type: str, *inputs: ir.Value | None, of: ir.Value = output, part: str = "", **attributes: int
    ) -> ir.Node:
        made = ir.node(op_type, inputs, attributes or None, num_outputs=3 if op_type == "DynamicQuantizeLinear" else 1)
        for index, value in enumerate(made.outputs):
            value.name = f"{of.name}.{part or op_type}{index or ''}"
        tape.append(made)
        return made

    if x not in quantized:
        quantized[x], rest = [], x
        for digit in range(digits):
            if digit:
                rest = emit("Sub", rest, emit("DequantizeLinear", *quantized[x][-1], of=rest).outputs[0]).outputs[0]
            quantized[x].append(tuple(emit("DynamicQuantizeLinear", rest, of=rest).outputs))
    layout = (weight, bool(node.attributes.get_int("transB", 0)))
    if layout not in narrowed:
        narrowed[layout] = _narrow(graph, *layout)
    weight_int8, weight_scale = narrowed[layout]
    parts = []
    for digit, (activation, scale, zero_point) in enumerate(quantized[x]):
        low = f".digit_{digit}" if digit else ""
        product = emit("MatMulInteger", activation, weight_int8, zero_point, part=f"product{low}").outputs[0]
        widened = emit("Cast", product, to=ir.DataType.FLOAT, part=f"float{low}").outputs[0]
        scales = emit("Mul", scale, weight_scale, part=f"scales{low}").outputs[0]
        parts.append(emit("Mul", widened, scales, part=f"scaled{low}").outputs[0])
    result, *lower = parts
    for part in lower:
        result = emit("Add", result, part, part=f"sum{len(tape)}").outputs[0]
    if bias is not None:
        result = emit("Add", result, bias).outputs[0]
    graph.insert_before(node, tape)
    ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    result.name, result.shape, result.type = output.name, output.shape, output.type
    graph.remove(node, safe=True)


def _narrow(graph: ir.Graph, weight: ir.Value, transposed: bool) -> tuple[ir.Value, ir.Value]:
    """Registers the int8 form `[in, out]` of `weight` and its scales `[out]`."""
    tensor = weight.const_value
    assert tensor is not None
    scale = _scales(tensor.numpy().T if transposed else tensor.numpy())
    if not np.isfinite(scale).all():
        raise ExportError(f"{weight.name} holds NaN or infinity, which int8 cannot. Get the checkpoint again")

    def quantize(array: np.ndarray) -> np.ndarray:
        columns = array.T if transposed else array
        narrowed: np.ndarray = np.rint(columns / scale).clip(-127, 127).astype(np.int8)
        return narrowed

    rows, columns = reversed(tensor.shape.numpy()) if transposed else tensor.shape.numpy()
    narrow = lazy(quantize, tensor, ir.DataType.INT8, (rows, columns))
    layout = ".transposed" if transposed else ""
    stored = {"int8": narrow, "scale": ir.Tensor(scale)}
    quantized, scales = (initializer(graph, f"{weight.name}.{name}{layout}", tensor) for name, tensor in stored.items())
    return quantized, scales


def _scales(columns: np.ndarray) -> np.ndarray:
    """For each column of `[in, out]`, the least with which every weight is at most 127 and every two neighbours sum to
    at most 127, before they are rounded."""
    pairs = columns[: len(columns) // 2 * 2].reshape(-1, 2, columns.shape[1])
    largest = np.abs(columns).max(axis=0)
    if len(pairs):
        largest = np.maximum(largest, np.abs(pairs[:, 0] + pairs[:, 1]).max(axis=0))
    scale: np.ndarray = largest.astype(np.float32) / 127
    scale[scale == 0] = 1
    return scale
