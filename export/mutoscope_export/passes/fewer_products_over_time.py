"""Convolutions over three successive frames with two thirds of the products: minimal filtering along time.

Two frames out of four take 4 convolutions of single frames in place of 6, by Winograd's F(2,3): over sums of frames,
with sums of the kernel's taps (S. Winograd 1980; Lavin and Gray 2015, https://arxiv.org/abs/1509.09308). Sums of whole
frames cost little beside convolutions of many channels. Knows the form that `convolve_over_time` knows. Knows nothing
of models.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..graphs.edit import Tape, exact, initializer, input_of, lazy, size_of, weight_of
from ..graphs.number_formats import Array
from .convolve_over_time import count_of_windows, windowed_frames

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
        if frames is not None and _count(node) and count_of_windows(node) == TAPS:
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
    weight, bias = input_of(convolution, 1), convolution.inputs[2]
    tensor, count = weight_of(weight), _count(convolution)
    write = Tape(graph, convolution, f"{convolution.outputs[0].name}.fewer_products")
    every_other = [
        write("Slice", frames, *(write.numbers(number) for number in (first, first + count - 1, 0, 2)))
        for first in range(4)
    ]
    products = []
    for index, (op_type, left, right, taps) in enumerate(_PRODUCTS):
        kernel = initializer(graph, f"{weight.name}.product_{index}", _kernel(tensor, taps))
        added = write(op_type, every_other[left], every_other[right])
        with_bias = [bias] if index == _BIASED else []
        products.append(write.copy(convolution, added, kernel, *with_bias))
    first, second, third, fourth = products
    even = write("Add", write("Add", first, second), third)
    odd = write("Sub", write("Sub", second, third), fourth)
    if count == 2:
        result = write("Concat", even, odd, axis=0)
    else:
        pairs = write("Concat", *(write("Unsqueeze", each, write.numbers(1)) for each in (even, odd)), axis=1)
        size = write("Shape", even, start=1, dtype=ir.DataType.INT64)
        result = write("Reshape", pairs, write("Concat", write.numbers(count), size, axis=0))
    write.replace(result)


def _kernel(weight: ir.TensorProtocol, taps: tuple[float, ...]) -> ir.TensorProtocol:
    """`[C', 3 C, kh, kw]`, frame by frame -> `[C', C, kh, kw]`, summed before any value is rounded."""
    wide, channels, *size = size_of(weight)
    shape = (wide, channels // TAPS, *size)

    def summed(array: Array) -> Array:
        frames = array.astype(np.float64).reshape(wide, TAPS, *shape[1:])
        return np.tensordot(frames, np.asarray(taps), axes=(1, 0)).astype(weight.dtype.numpy())

    return lazy(summed, exact(weight), weight.dtype, shape)
