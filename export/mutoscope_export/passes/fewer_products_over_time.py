"""Convolutions over three successive frames with two thirds of the products: minimal filtering along time.

Two frames out of four take 4 convolutions of single frames in place of 6, by Winograd's F(2,3): over sums of frames,
with sums of the kernel's taps (S. Winograd 1980; Lavin and Gray 2015, https://arxiv.org/abs/1509.09308). Sums of whole
frames cost little beside convolutions of many channels. Knows the form that `convolve_over_time` knows. Knows nothing
of models.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mutoscope_export.passes.convolve_over_time import windowed_frames
from mutoscope_export.passes.fold_weights import exact, initializer, lazy
from mutoscope_export.passes.static_quantization import constant, describe

TAPS = 3
# By product: which two of four frames, how they are added, and the taps of its kernel.
_PRODUCTS = (
    ("Sub", 0, 2, (1.0, 0.0, 0.0)),
    ("Add", 1, 2, (0.5, 0.5, 0.5)),
    ("Sub", 2, 1, (0.5, -0.5, 0.5)),
    ("Sub", 1, 3, (0.0, 0.0, 1.0)),
)
_BIASED = 1  # the product that both results have a positive part of


def fewer_products_over_time(model: ir.Model) -> bool:
    """Rewrites each `Conv` of `Concat(x[0:T], x[1:T+1], x[2:T+2])` along the channels, T even."""
    graph = model.graph
    changed = False
    for node in list(graph):
        frames = windowed_frames(node) if node.op_type == "Conv" else None
        if frames is not None and _count(node) and len(node.inputs[0].producer().inputs) == TAPS:
            _replace(graph, node, frames)
            changed = True
    if changed:
        RemoveUnusedNodesPass()(model)
    return changed


def _count(convolution: ir.Node) -> int:
    """The frames that it gives, T; 0 where that is not known, or odd, or there is no bias."""
    shape = convolution.outputs[0].shape
    frames = shape[0] if shape and len(convolution.inputs) == 3 else None
    return frames if isinstance(frames, int) and frames % 2 == 0 else 0


def _replace(graph: ir.Graph, convolution: ir.Node, frames: ir.Value) -> None:
    weight, bias, output = convolution.inputs[1], convolution.inputs[2], convolution.outputs[0]
    assert weight is not None and weight.const_value is not None
    count, tape = _count(convolution), []

    def write(op_type: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        tape.append(ir.node(op_type, inputs, attributes))
        result = tape[-1].outputs[0]
        result.name = f"{output.name}.{len(tape)}"
        result.dtype = output.dtype
        return result

    def number(value: int) -> ir.Value:
        return constant(graph, f"number_{value}", np.array([value]))

    every_other = [
        write("Slice", frames, number(first), number(first + count - 1), number(0), number(2)) for first in range(4)
    ]
    products = []
    for index, (op_type, left, right, taps) in enumerate(_PRODUCTS):
        kernel = initializer(graph, f"{weight.name}.product_{index}", _kernel(weight.const_value, taps))
        added = write(op_type, every_other[left], every_other[right])
        products.append(write("Conv", added, kernel, *([bias] if index == _BIASED else [])))
        tape[-1].attributes.update(convolution.attributes)
    first, second, third, fourth = products
    even = write("Add", write("Add", first, second), third)
    odd = write("Sub", write("Sub", second, third), fourth)
    if count == 2:
        result = write("Concat", even, odd, axis=0)
    else:
        pairs = write("Concat", *(write("Unsqueeze", each, number(1)) for each in (even, odd)), axis=1)
        shape = write("Concat", number(count), write("Shape", even, start=1), axis=0)
        for value in (tape[-1].inputs[1], shape):
            value.dtype = ir.DataType.INT64
        result = write("Reshape", pairs, shape)
    graph.insert_before(convolution, tape)
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    describe(result, output.name or "", output.shape, output.dtype)
    output.name = None
    graph.remove(convolution, safe=True)


def _kernel(weight: ir.TensorProtocol, taps: tuple[float, ...]) -> ir.TensorProtocol:
    """`[C', 3 C, kh, kw]`, frame by frame -> `[C', C, kh, kw]`, summed before any value is rounded."""
    wide, channels, *size = weight.shape.numpy()
    shape = (wide, channels // TAPS, *size)

    def summed(array: np.ndarray) -> np.ndarray:
        frames = array.astype(np.float64).reshape(wide, TAPS, *shape[1:])
        return np.tensordot(frames, np.asarray(taps), axes=(1, 0)).astype(weight.dtype.numpy())

    return lazy(summed, exact(weight), weight.dtype, shape)
