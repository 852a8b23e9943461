"""Makes of a graph in NVFP4 one with the same numbers that any library runs, to be compared on a CPU.

What TensorRT's operator does with an activation is written out in float32: the largest magnitude of each block, its
scale rounded to E4M3, and each value rounded to the nearest of E2M1, to the even one of two that are equally near.
Weights become what their four bits stand for. All of these are exact in the graph's own type, so nothing but the order
of sums is different on a GPU. Knows nothing of models.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..graphs.edit import Tape, constant, initializer, input_of, producer_of, size_of, weight_of
from ..graphs.number_formats import E4M3, Array
from ..graphs.nvfp4 import BLOCK, E2M1, LEAST_SCALE
from .nvfp4 import DOMAIN, DYNAMIC_QUANTIZE


def nvfp4_in_float32(model: ir.Model) -> bool:
    """Replaces every value in four bits; where there is none, nothing changes."""
    graph = model.graph
    changed = False
    for node in list(graph):
        if node.op_type != "DequantizeLinear" or input_of(node).dtype != E2M1.dtype:
            continue
        tape = Tape(graph, node, f"{node.outputs[0].name}.in_float32")
        quantize = producer_of(input_of(node), DYNAMIC_QUANTIZE)
        result = _weight(tape, node) if quantize is None else _activation(tape, quantize)
        node.outputs[0].replace_all_uses_with(result)
        changed = True
    if changed:
        RemoveUnusedNodesPass()(model)
        model.opset_imports.pop(DOMAIN, None)
    return changed


def _weight(tape: Tape, node: ir.Node) -> ir.Value:
    values, scales_of = input_of(node), input_of(node, 1).producer()
    assert scales_of is not None
    blocks, whole = (weight_of(input_of(scales_of, index)) for index in (0, 1))
    tensor = weight_of(values)

    def dequantized() -> ir.Tensor[Array]:
        scales = blocks.numpy().astype(np.float32) * whole.numpy().astype(np.float32)
        numbers = tensor.numpy().astype(np.float32) * scales.repeat(BLOCK, axis=0)
        return ir.Tensor(numbers.astype(whole.dtype.numpy()), dtype=whole.dtype)

    lazy = ir.LazyTensor(dequantized, dtype=whole.dtype, shape=ir.Shape(size_of(tensor)))
    return initializer(tape.graph, f"{values.name}.in_float32", lazy)


def _activation(tape: Tape, quantize: ir.Node) -> ir.Value:
    """`[B, S, E]`."""
    x, scale = input_of(quantize), float(weight_of(input_of(quantize, 1)).numpy())
    assert x.dtype is not None

    def number(value: float) -> ir.Value:
        return constant(tape.graph, f"float_{value:.9g}", np.array(value, np.float32))

    wide = tape("Cast", x, to=ir.DataType.FLOAT, dtype=ir.DataType.FLOAT)
    blocks = tape("Div", tape("Reshape", wide, tape.numbers(0, 0, -1, BLOCK)), number(scale))
    largest = tape("ReduceMax", tape("Abs", blocks), tape.numbers(-1), keepdims=1)
    needed = tape("Max", tape("Div", largest, number(E2M1.largest)), number(LEAST_SCALE))
    narrow = tape("Cast", needed, to=E4M3.dtype, saturate=1, dtype=E4M3.dtype)
    scales = tape("Cast", narrow, to=ir.DataType.FLOAT, dtype=ir.DataType.FLOAT)
    scaled = tape("Clip", tape("Div", blocks, scales), number(-E2M1.largest), number(E2M1.largest))
    nearest = _nearest(tape, scaled, number(0.5), number(1.0), number(2.0), number(4.0))
    result = tape("Mul", tape("Mul", nearest, scales), number(scale))
    whole = tape("Reshape", result, tape.numbers(0, 0, -1))
    return tape("Cast", whole, to=x.dtype, dtype=x.dtype)


def _nearest(tape: Tape, x: ir.Value, half: ir.Value, one: ir.Value, two: ir.Value, four: ir.Value) -> ir.Value:
    """The numbers of E2M1 are steps of 0.5 below 2, of 1 below 4, and of 2 from there on."""
    magnitude = tape("Abs", x)
    below = [tape("Less", magnitude, bound, dtype=ir.DataType.BOOL) for bound in (two, four)]
    step = tape("Where", below[0], half, tape("Where", below[1], one, two, dtype=x.dtype), dtype=x.dtype)
    return tape("Mul", tape("Round", tape("Div", x, step)), step)
