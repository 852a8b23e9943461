"""Turns convolutions of three successive frames' channels, laid side by side, into convolutions over time.

The side-by-side form is the faster one on CPUs, where copying the frames three times costs little. On a GPU the copies
are most of what a video decoder takes in memory, and kernels for three dimensions exist. Knows the two forms, frames
standing where the batch usually stands. Knows nothing of models.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mutoscope_export.passes.fold_weights import initializer, laid_out
from mutoscope_export.passes.static_quantization import constant


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
    """The frames whose windows the convolution reads, each window a frame later than the one before; else None."""
    windows, weight = convolution.inputs[0], convolution.inputs[1]
    concat = windows and windows.producer()
    if concat is None or concat.op_type != "Concat" or concat.attributes["axis"].as_int() != 1 or weight is None:
        return None
    slices = [value and value.producer() for value in concat.inputs]
    if not weight.is_initializer() or not all(node and node.op_type == "Slice" for node in slices):
        return None
    sources = {node.inputs[0] for node in slices}
    starts = [_constant(node.inputs[1]) for node in slices]
    axes = [_constant(node.inputs[3]) for node in slices]
    if len(sources) > 1 or starts != list(range(len(slices))) or set(axes) != {0}:
        return None
    return sources.pop()


def _constant(value: ir.Value | None) -> int | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.size != 1 else int(tensor.numpy().item())


def _replace(graph: ir.Graph, convolution: ir.Node, frames: ir.Value) -> None:
    """`[T+n, C, H, W]` is seen as `[1, C, T+n, H, W]` and back, which moves nothing when channels lie innermost."""
    weight, bias, output = convolution.inputs[1], convolution.inputs[2], convolution.outputs[0]
    assert weight is not None and weight.const_value is not None
    taps = len(convolution.inputs[0].producer().inputs)
    wide, channels, *kernel = weight.const_value.shape.numpy()
    shape = (wide, channels // taps, taps, *kernel)

    def over_time(array: np.ndarray) -> np.ndarray:
        return array.reshape(wide, taps, channels // taps, *kernel).swapaxes(1, 2)

    stored = initializer(graph, f"{weight.name}.over_time", laid_out(over_time, weight.const_value, shape))
    batch = constant(graph, "batch_axis", np.array([0]))
    top, left, bottom, right = convolution.attributes["pads"].as_ints()
    swap = {"perm": [1, 0, 2, 3]}
    tape: list[ir.Node] = []
    result = frames
    for op_type, others, attributes in (
        ("Transpose", [], swap),
        ("Unsqueeze", [batch], {}),
        ("Conv", [stored, bias], {"pads": [0, top, left, 0, bottom, right]}),
        ("Squeeze", [batch], {}),
        ("Transpose", [], swap),
    ):
        tape.append(ir.node(op_type, [result, *others], attributes))
        result = tape[-1].outputs[0]
        result.name = f"{output.name}.{len(tape)}"
    graph.insert_before(convolution, tape)
    result.shape, result.dtype = output.shape, output.dtype
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    result.name, output.name = output.name, None
    graph.remove(convolution, safe=True)
