"""Lets a LoRA change the linear layers of a graph while it runs: the matrices of each are inputs of the graph.

A weight `W` `[in, out]` becomes `W + A·B`, of A `[in, R]` and B `[R, out]`, with one R for all layers. The sum is made
anew in each run and is as large as one weight, where a product beside that of the layer would be as large as what the
layer gives. A weight in FP8 becomes the sum put through FP8 again with the scales that it has, so that its products
stay in FP8. A weight in int8 for CPUs, whose integers no sum can be added to, keeps its product and gets `(x·A)·B`
beside it.

Knows linear layers as the other passes leave them, so it is the last. Knows nothing of models or of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx_ir as ir
from mutoscope.bundle.contract import LORA_A, LORA_B, LORA_RANK

from ..graphs.edit import Tape, input_of, only_user_of, producer_of
from ..graphs.parts import OF_WEIGHTS

_LAYERS = ("MatMul", "Gemm", "MatMulInteger")


@dataclass(frozen=True)
class LoraInputs:
    """A pass over every linear layer whose weight is a parameter of the network.

    Args:
        parameters: their shapes by name, `[out, in]` of a linear layer and `[out, ...]` of a convolution. A weight of
            the graph may have more before and after this name.
        dtype: of the inputs.

    Raises:
        ValueError: the graph has no such layer, or one in int8 has another form than `DynamicInt8` makes.
    """

    parameters: Mapping[str, tuple[int, ...]]
    dtype: ir.DataType

    def __call__(self, model: ir.Model) -> bool:
        graph = model.graph
        inputs: dict[str, tuple[ir.Value, ir.Value]] = {}
        changed: set[ir.Value] = set()
        for node in list(graph):
            weight = _weight_of(node) if node.op_type in _LAYERS else None
            if weight is None or weight in changed:
                continue
            stored = input_of(producer) if (producer := weight.producer()) is not None else weight
            name = _parameter(stored.name or "", self.parameters)
            if name is None:
                continue
            if name not in inputs:
                inputs[name] = self._inputs(name)
                graph.inputs.extend(inputs[name])
            add = _add_beside if node.op_type == "MatMulInteger" else _add_to_weight
            add(Tape(graph, node, f"{weight.name}.lora"), node, weight, *inputs[name])
            changed.add(weight)
        if not changed:
            raise ValueError("the graph has no linear layer whose weight is a parameter of the network")
        return True

    def _inputs(self, name: str) -> tuple[ir.Value, ir.Value]:
        columns, *rest = self.parameters[name]
        shapes: dict[str, tuple[int | str, ...]] = {LORA_A: (prod(rest), LORA_RANK), LORA_B: (LORA_RANK, columns)}
        a, b = (
            ir.Value(name=f"{name}{suffix}", type=ir.TensorType(self.dtype), shape=ir.Shape(shape))
            for suffix, shape in shapes.items()
        )
        for value in (a, b):
            value.meta[OF_WEIGHTS] = True
        return a, b


def _weight_of(layer: ir.Node) -> ir.Value | None:
    """A stored weight as the layer has it, in full: itself, or what its `Cast` or `DequantizeLinear` gives."""
    value = input_of(layer, 1)
    while (waiting := producer_of(value, "Add")) is not None:  # for its turn
        value = input_of(waiting)
    widened = producer_of(value, "Cast", "DequantizeLinear")
    stored = value if widened is None else input_of(widened)
    return value if stored.is_initializer() else None


def _parameter(stored: str, parameters: Mapping[str, tuple[int, ...]]) -> str | None:
    """The parameter that a weight was made from: the longest that is a part of its name, between dots."""
    parts = stored.split(".")
    for length in range(len(parts), 0, -1):
        for begin in range(len(parts) - length + 1):
            name = ".".join(parts[begin : begin + length])
            if len(parameters.get(name, ())) >= 2:
                return name
    return None


def _add_to_weight(tape: Tape, layer: ir.Node, weight: ir.Value, a: ir.Value, b: ir.Value) -> None:
    """`W + A·B` for everything that reads `W`."""
    assert weight.dtype is not None
    uses = list(weight.uses())
    a, b = (_cast(tape, each, weight.dtype) for each in (a, b))
    if layer.attributes.get_int("transB", 0):
        a, b = (tape("Transpose", each, perm=[1, 0]) for each in (b, a))
    result = tape("Add", weight, tape("MatMul", a, b, shape=weight.shape), shape=weight.shape)
    if (stored := producer_of(weight, "DequantizeLinear")) is not None:
        scale, axis, narrow = stored.inputs[1], stored.attributes["axis"].as_int(), input_of(stored).dtype
        result = tape("QuantizeLinear", result, scale, axis=axis, output_dtype=narrow, dtype=narrow, shape=weight.shape)
        result = tape.copy(stored, result, scale, shape=weight.shape)
    for use in uses:
        use.node.replace_input_with(use.idx, result)


def _add_beside(tape: Tape, layer: ir.Node, weight: ir.Value, a: ir.Value, b: ir.Value) -> None:
    """`(x·A)·B` on what a layer in int8 gives, before its bias."""
    quantize = producer_of(input_of(layer), "DynamicQuantizeLinear")
    cast = only_user_of(layer.outputs[0])
    scaled = cast and only_user_of(cast.outputs[0])
    if quantize is None or scaled is None or len(weight.uses()) > 1:
        raise ValueError(f"{weight.name} is in int8 in another form than that of a layer with one digit")
    product = scaled.outputs[0]
    uses = list(product.uses())
    result = tape("Add", product, tape("MatMul", tape("MatMul", input_of(quantize), a), b), shape=product.shape)
    for use in uses:
        use.node.replace_input_with(use.idx, result)


def _cast(tape: Tape, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    return value if value.dtype == dtype else tape("Cast", value, to=dtype, dtype=dtype, shape=value.shape)
