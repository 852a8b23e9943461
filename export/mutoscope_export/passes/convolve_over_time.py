"""Turns convolutions of three successive frames' channels, laid side by side, into convolutions over time.

The side-by-side form is the faster one on CPUs, where copying the frames three times costs little. On a GPU the copies
are most of what a video decoder takes in memory, and kernels for three dimensions exist. Knows the two forms, frames
standing where the batch usually stands. Knows nothing of models.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..graphs.edit import Tape, initializer, input_of, laid_out, producer_of, size_of, weight_of
from ..graphs.number_formats import Array


def convolve_over_time(model: ir.Model) -> bool:
    """Replaces each `Conv` of `Concat(x[0:T], x[1:T+1], ...)` along the channels by one over `x` `[T+n, C, H, W]`."""
    graph = model.graph
    changed = False
    for node in list(graph):
        frames = windowed_frames(node) if node.op_type == "Conv" else None
        if frames is not None:
            _replace(graph, node, frames)
            changed = True
    if changed:
        RemoveUnusedNodesPass()(model)
    return changed


def windowed_frames(convolution: ir.Node) -> ir.Value | None:
    """The frames whose windows the convolution reads, each window a frame later than the one before; else None.

    Windows that take every other frame, as those that halve the number of frames, are others.
    """
    concat = producer_of(convolution.inputs[0], "Concat")
    if concat is None or concat.attributes["axis"].as_int() != 1 or not input_of(convolution, 1).is_initializer():
        return None
    slices = [node for value in concat.inputs if (node := producer_of(value, "Slice")) is not None]
    if len(slices) != len(concat.inputs):
        return None
    sources = {input_of(node) for node in slices}
    starts = [_constant(node.inputs[1]) for node in slices]
    axes = [_constant(node.inputs[3]) for node in slices]
    steps = [_constant(node.inputs[4]) if len(node.inputs) > 4 else 1 for node in slices]
    if len(sources) > 1 or starts != list(range(len(slices))) or set(axes) != {0} or set(steps) != {1}:
        return None
    return sources.pop()


def count_of_windows(convolution: ir.Node) -> int:
    """How many windows it reads, where it reads windows."""
    concat = producer_of(convolution.inputs[0], "Concat")
    return 0 if concat is None else len(concat.inputs)


def _constant(value: ir.Value | None) -> int | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.size != 1 else int(tensor.numpy().item())


def _replace(graph: ir.Graph, convolution: ir.Node, frames: ir.Value) -> None:
    """`[T+n, C, H, W]` is seen as `[1, C, T+n, H, W]` and back, which moves nothing when channels lie innermost."""
    weight, output = input_of(convolution, 1), convolution.outputs[0]
    tensor, taps = weight_of(weight), count_of_windows(convolution)
    wide, channels, *size = size_of(tensor)
    shape = (wide, channels // taps, taps, *size)

    def over_time(array: Array) -> Array:
        return array.reshape(wide, taps, channels // taps, *size).swapaxes(1, 2)

    kernel = initializer(graph, f"{weight.name}.over_time", laid_out(over_time, tensor, shape))
    top, left, bottom, right = convolution.attributes["pads"].as_ints()
    write = Tape(graph, convolution, f"{output.name}.over_time")
    first = write.numbers(0)
    video = write("Unsqueeze", write("Transpose", frames, perm=[1, 0, 2, 3]), first)
    bias = [value for value in convolution.inputs[2:] if value is not None]  # the exporter leaves out one of zeros
    video = write("Conv", video, kernel, *bias, pads=[0, top, left, 0, bottom, right])
    write.replace(write("Transpose", write("Squeeze", video, first), perm=[1, 0, 2, 3]))
