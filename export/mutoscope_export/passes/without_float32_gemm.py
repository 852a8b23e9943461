"""Writes the float32 matrix products of a half-precision graph as operators that Turing has in float32.

TensorRT-RTX has no float32 `MatMul` for SM75, and a network in float16 keeps a few: embeddings, the last projection,
the solver's line. As a convolution by one pixel, or as products and a sum, it compiles them, and float32 they stay.
Knows `MatMul` and `Gemm`. Knows nothing of models.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..graphs.edit import Tape, initializer, input_of, lazy, size_of, weight_of


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
        if node.op_type in ("MatMul", "Gemm") and input_of(node).dtype == node.outputs[0].dtype == ir.DataType.FLOAT
    ]
    for node in found:
        _replace(graph, node)
    if found:
        RemoveUnusedNodesPass()(model)
    return bool(found)


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    x, weight, *bias = node.inputs
    assert x is not None and weight is not None
    ranks = [len(value.shape) if value.shape is not None else None for value in (x, weight)]
    write = Tape(graph, node, f"{node.outputs[0].name}.float32")
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
    write.replace(result)


def _is_plain(node: ir.Node) -> bool:
    scales = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    return not node.attributes.get_int("transA", 0) and set(scales) == {1.0}


def _as_convolution(write: Tape, x: ir.Value, weight: ir.Value) -> ir.Value:
    """Channels of an image as high as there are tokens and one pixel wide."""
    tensor = weight_of(weight)
    rows, columns = size_of(tensor)
    turned = lazy(lambda array: array.T[..., None, None], tensor, tensor.dtype, (columns, rows, 1, 1))
    kernel = initializer(write.graph, f"{weight.name}.pixel", turned)
    last = write.numbers(3)
    image = write("Unsqueeze", write("Transpose", x, perm=[0, 2, 1]), last)
    return write("Transpose", write("Squeeze", write("Conv", image, kernel), last), perm=[0, 2, 1])


def _as_sum(write: Tape, x: ir.Value, weight: ir.Value, transposed: bool) -> ir.Value:
    """`[M, K]` and `[K, N]`, or `[N, K]` where it is transposed, to `[M, N]`."""
    if transposed:
        products = write("Mul", write("Unsqueeze", x, write.numbers(1)), weight)
        return write("ReduceSum", products, write.numbers(2), keepdims=0)
    products = write("Mul", write("Unsqueeze", x, write.numbers(2)), write("Unsqueeze", weight, write.numbers(0)))
    return write("ReduceSum", products, write.numbers(1), keepdims=0)
