"""Linear layers in NVFP4, written the way TensorRT-RTX multiplies in it: both operands of the product in four bits.

Knows `MatMul` by a weight, as the other passes for GPUs leave it, so it is the last of them. Knows nothing of models,
or of how scales are found. A weight is `DequantizeLinear` of E2M1 values by blocks, whose scales are
`DequantizeLinear` of E4M3 ones. An activation goes through TensorRT's own operator, which finds the scales of its
blocks while it runs; of the whole it is given one. No other library knows that operator: `nvfp4_in_float32.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..graphs.edit import Tape, constant, exact, initializer, input_of, lazy, producer_of, size_of, weight_of
from ..graphs.number_formats import E4M3
from ..graphs.nvfp4 import BLOCK, E2M1, block_scales, block_values, weight_scale
from .in_turn import waiting_by
from .static_quantization import refuse_not_finite

DOMAIN, DYNAMIC_QUANTIZE = "trt", "TRT_FP4DynamicQuantize"


@dataclass(frozen=True)
class Nvfp4:
    """A pass over the linear layers whose weights are the keys of `activation_scales`.

    The value is the scale of the whole of what the layer reads, as `graphs.nvfp4.tensor_scale` gives it. An activation
    that several layers read with one scale is quantized once. Weights are quantized while they are written, one at a
    time.

    Raises:
        ValueError: a name is no weight of a `MatMul` `[in, out]`, or 16 does not divide its `in`.
        ExportError: a weight is not finite.
    """

    activation_scales: Mapping[str, float]

    def __call__(self, model: ir.Model) -> bool:
        graph = model.graph
        activations: dict[tuple[ir.Value, float], ir.Value] = {}
        weights: dict[str, ir.Value] = {}
        for node in list(graph):
            weight, wait = waiting_by(node.inputs[1]) if node.op_type == "MatMul" else (None, None)
            if weight is None or (name := weight.name or "") not in self.activation_scales:
                continue
            tape = Tape(graph, node, f"{node.outputs[0].name}.nvfp4")
            x, scale = input_of(node), self.activation_scales[name]
            if wait is not None:  # not by the weight, which becomes a constant
                x = tape("Add", x, wait, shape=x.shape)
            if (x, scale) not in activations:
                activations[x, scale] = _dynamically_quantized(tape, x, scale)
            if name not in weights:
                weights[name] = _quantized_weight(tape, weight)
            node.replace_input_with(0, activations[x, scale])
            node.replace_input_with(1, weights[name])
        if missing := sorted(set(self.activation_scales) - set(weights)):
            raise ValueError(f"no MatMul has the weight {', '.join(missing[:3])}; leave it out")
        model.opset_imports[DOMAIN] = 1
        RemoveUnusedNodesPass()(model)
        return bool(weights)


def _dynamically_quantized(tape: Tape, x: ir.Value, scale: float) -> ir.Value:
    assert x.dtype is not None
    stored = constant(tape.graph, f"nvfp4_scale_{scale:.9g}", np.array(scale, x.dtype.numpy()))
    values, scales = tape.several(
        DYNAMIC_QUANTIZE, x, stored, dtypes=(E2M1.dtype, E4M3.dtype), domain=DOMAIN, axis=-1, block_size=BLOCK,
        scale_type=int(E4M3.dtype),
    )  # fmt: skip
    values.shape = x.shape
    return _dequantized(tape, values, tape("DequantizeLinear", scales, stored, dtype=x.dtype), -1)


def _quantized_weight(tape: Tape, weight: ir.Value) -> ir.Value:
    """From values and scales of blocks along its first axis."""
    cast = producer_of(weight, "Cast")  # of what is stored in half precision
    source = exact(weight_of(weight if cast is None else input_of(cast)))
    rows, *columns = size_of(source)
    if len(columns) != 1 or rows % BLOCK:
        raise ValueError(f"{weight.name} {size_of(source)} cannot be quantized to NVFP4: it needs to be [16 n, m]")
    scale = weight_scale(source.numpy())
    refuse_not_finite(weight, np.array(scale))
    assert weight.dtype is not None
    values, scales = (
        initializer(tape.graph, f"{weight.name}.{name}", lazy(partial(of, scale=scale), source, dtype, shape))
        for name, of, dtype, shape in (
            (E2M1.name, block_values, E2M1.dtype, (rows, *columns)),
            (f"{E2M1.name}_scales", block_scales, E4M3.dtype, (rows // BLOCK, *columns)),
        )
    )
    of_all = constant(tape.graph, f"{weight.name}.{E2M1.name}_scale", np.array(scale, weight.dtype.numpy()))
    return _dequantized(tape, values, tape("DequantizeLinear", scales, of_all, dtype=weight.dtype), 0)


def _dequantized(tape: Tape, values: ir.Value, scales: ir.Value, axis: int) -> ir.Value:
    return tape("DequantizeLinear", values, scales, axis=axis, block_size=BLOCK, dtype=scales.dtype, shape=values.shape)
