"""Writes the float32 matrix products of a half-precision graph as operators that Turing has in float32.

TensorRT-RTX has no float32 `MatMul` for SM75, and a network in float16 keeps a few: embeddings, the last projection,
the solver's line. As a convolution by one pixel, or as products and a sum, it compiles them, and float32 they stay.
Knows `MatMul` and `Gemm`. Knows nothing of models.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mutoscope_export.passes.fold_weights import initializer, lazy
from mutoscope_export.passes.static_quantization import constant, describe


def without_float32_gemm(model: ir.Model) -> bool:
    """Replaces every `MatMul` and `Gemm` of float32.

    A product of tokens `[B, S, K]` and a stored weight becomes a convolution, which is fast for many tokens. One of two
    matrices becomes products and a sum, which costs no memory where the compiler fuses them and is meant for matrices
    with few rows.

    Raises:
        ValueError: for a product of another form.
    """
    graph = model.graph
    found = [
        node
        for node in graph
        if node.op_type in ("MatMul", "Gemm") and node.inputs[0].dtype == node.outputs[0].dtype == ir.DataType.FLOAT
    ]
    for node in found:
        _replace(graph, node)
    if found:
        RemoveUnusedNodesPass()(model)
    return bool(found)


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    x, weight, *bias = node.inputs
    output = node.outputs[0]
    assert x is not None and weight is not None
    ranks = [len(value.shape) if value.shape is not None else None for value in (x, weight)]
    write = _Writer(graph, node)
    if node.op_type == "MatMul" and ranks == [3, 2] and weight.is_initializer():
        result = _as_convolution(write, x, weight)
    elif ranks == [2, 2] and _is_plain(node):
        result = _as_sum(write, x, weight, bool(node.attributes.get_int("transB", 0)))
    else:
        raise ValueError(
            f"{node.op_type} of {x.name} and {weight.name} has ranks {ranks}; supported are tokens [B, S, K] by a "
            "stored weight, and two matrices without transA, alpha and beta"
        )
    for value in bias:
        result = write("Add", result, value)
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    result.name, result.shape, output.name = output.name, output.shape, None
    graph.remove(node, safe=True)


def _is_plain(node: ir.Node) -> bool:
    scales = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    return not node.attributes.get_int("transA", 0) and set(scales) == {1.0}


def _as_convolution(write: "_Writer", x: ir.Value, weight: ir.Value) -> ir.Value:
    """Channels of an image as high as there are tokens and one pixel wide."""
    tensor = weight.const_value
    assert tensor is not None
    rows, columns = tensor.shape.numpy()
    turned = lazy(lambda array: array.T[..., None, None], tensor, tensor.dtype, (columns, rows, 1, 1))
    kernel = initializer(write.graph, f"{weight.name}.pixel", turned)
    last = write.axis(3)
    image = write("Unsqueeze", write("Transpose", x, perm=[0, 2, 1]), last)
    return write("Transpose", write("Squeeze", write("Conv", image, kernel), last), perm=[0, 2, 1])


def _as_sum(write: "_Writer", x: ir.Value, weight: ir.Value, transposed: bool) -> ir.Value:
    """`[M, K]` and `[K, N]`, or `[N, K]` where it is transposed, to `[M, N]`."""
    if transposed:
        products = write("Mul", write("Unsqueeze", x, write.axis(1)), weight)
        return write("ReduceSum", products, write.axis(2), keepdims=0)
    products = write("Mul", write("Unsqueeze", x, write.axis(2)), write("Unsqueeze", weight, write.axis(0)))
    return write("ReduceSum", products, write.axis(1), keepdims=0)


class _Writer:
    """Puts float32 operators in front of a node and names what they give after what it gave."""

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self.graph, self._before, self._written = graph, before, 0

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: int | list[int]) -> ir.Value:
        node = ir.node(op_type, inputs, attributes or None)
        self._written += 1
        name = f"{self._before.outputs[0].name}.float32_{self._written}"
        describe(node.outputs[0], name, None, ir.DataType.FLOAT)
        self.graph.insert_before(self._before, node)
        return node.outputs[0]

    def axis(self, axis: int) -> ir.Value:
        return constant(self.graph, f"axis_{axis}", np.array([axis]))
