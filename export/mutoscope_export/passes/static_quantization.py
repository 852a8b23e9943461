"""Static quantization for GPUs: chosen linear layers with weights and activations in a format of eight bits.

Knows the two forms a linear layer has in a graph, `MatMul` and `Gemm`, which stay, and around them the pair
QuantizeLinear, DequantizeLinear, which TensorRT fuses into the product and ONNX Runtime computes as it stands. Knows
nothing of models or of how scales are found. The dequantized side has the graph's own type: bfloat16 for GPUs, float32
to be measured on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..errors import ExportError
from ..graphs.edit import Tape, constant, initializer, lazy, size_of, weight_of
from ..graphs.number_formats import Array, NumberFormat


@dataclass(frozen=True)
class StaticQuantization:
    """A pass over the linear layers whose weights are the keys of `activation_scales`.

    The value is the scale of what the layer reads, one for the whole tensor: `number_format.largest` times it is the
    largest magnitude that is not cut off. Each output channel of a weight has a scale of its own. An activation that
    several layers read with one scale is quantized once. Weights are quantized while they are written, one at a time.

    Raises:
        ValueError: a name is no weight of the graph, or not that of a linear layer.
        ExportError: a weight is not finite.
    """

    number_format: NumberFormat
    activation_scales: Mapping[str, float]

    def __call__(self, model: ir.Model) -> bool:
        graph = model.graph
        missing = sorted(set(self.activation_scales) - set(graph.initializers))
        if missing:
            raise ValueError(
                f"no weight is called {', '.join(missing[:3])}; the graph's weights are named like "
                f"{', '.join(sorted(graph.initializers)[:5])}"
            )
        scales = {graph.initializers[name]: scale for name, scale in self.activation_scales.items()}
        activations: dict[tuple[ir.Value, float], ir.Value] = {}
        weights: dict[tuple[ir.Value, int], ir.Value] = {}
        # In the graph's order, so that the quantization of an activation stands before all that read it.
        for node in list(graph):
            if len(node.inputs) < 2 or (weight := node.inputs[1]) not in scales:
                continue
            _refuse_unless_linear(node)
            x = node.inputs[0]
            assert x is not None and weight is not None
            tape = Tape(graph, node, f"{node.outputs[0].name}.quantized")
            if (x, scales[weight]) not in activations:
                activations[x, scales[weight]] = quantize_dequantize(tape, x, scales[weight], self.number_format)
            layout = (weight, 0 if node.attributes.get_int("transB", 0) else 1)
            if layout not in weights:
                weights[layout] = _dequantized_weight(tape, *layout, self.number_format)
            node.replace_input_with(0, activations[x, scales[weight]])
            node.replace_input_with(1, weights[layout])
        for weight in scales:
            for use in weight.uses():
                _refuse_unless_linear(use.node)
        RemoveUnusedNodesPass()(model)
        return bool(scales)


def weight_scales(weight: Array, axis: int, dtype: np.dtype[Any], number_format: NumberFormat) -> Array:
    """The scale of each output channel, which lie along `axis` of the two; `dtype` is what the graph can hold."""
    scales: Array = np.abs(weight.astype(np.float32)).max(axis=1 - axis) / number_format.largest
    scales = scales.astype(dtype)
    scales[scales == 0] = 1
    return scales


def refuse_not_finite(weight: ir.Value, scales: Array) -> None:
    """
    Raises:
        ExportError: the scales of a weight are not finite, because the weight is not.
    """
    if not np.isfinite(scales.astype(np.float32)).all():
        raise ExportError(
            f"{weight.name} holds NaN or infinity, which no scale can represent. Get the checkpoint again"
        )


def quantize_dequantize(tape: Tape, x: ir.Value, scale: float, number_format: NumberFormat) -> ir.Value:
    """`x` put through a number format and back to its own type.

    Raises:
        ValueError: the type of `x` is not known.
    """
    if x.dtype is None:
        raise ValueError(f"the type of {x.name} is not known, and its quantization scale needs that type")
    stored = constant(tape.graph, f"{x.name}.scale_{scale:.9g}", np.array(scale, x.dtype.numpy()))
    dtype = number_format.dtype
    quantized = tape("QuantizeLinear", x, stored, output_dtype=dtype, dtype=dtype, shape=x.shape)
    return tape("DequantizeLinear", quantized, stored, dtype=x.dtype, shape=x.shape)


def _refuse_unless_linear(node: ir.Node) -> None:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if (
        node.op_type not in ("MatMul", "Gemm")
        or node.attributes.get_int("transA", 0) != 0
        or weight is None
        or weight.const_value is None
        or len(weight.const_value.shape) != 2
    ):
        names = ", ".join(value.name or "" for value in node.inputs if value is not None)
        raise ValueError(
            f"{node.op_type}({names}) cannot be quantized: supported are MatMul and Gemm (transA 0) by a weight of two "
            "dimensions; leave this weight out"
        )


def _dequantized_weight(tape: Tape, weight: ir.Value, axis: int, number_format: NumberFormat) -> ir.Value:
    """The weight from its quantized form and the scales of its output channels, which are along `axis`."""
    tensor, dtype = weight_of(weight), weight.dtype
    assert dtype is not None
    scales = weight_scales(tensor.numpy(), axis, dtype.numpy(), number_format)
    refuse_not_finite(weight, scales)

    def quantize(array: Array) -> Array:
        return number_format.nearest(array.astype(np.float32) / np.expand_dims(scales.astype(np.float32), 1 - axis))

    suffix = "" if axis else ".rows"
    quantized = initializer(
        tape.graph,
        f"{weight.name}.{number_format.name}{suffix}",
        lazy(quantize, tensor, number_format.dtype, size_of(tensor)),
    )
    stored = constant(tape.graph, f"{weight.name}.scale{suffix}", scales)
    return tape("DequantizeLinear", quantized, stored, axis=axis, dtype=dtype, shape=weight.shape)
