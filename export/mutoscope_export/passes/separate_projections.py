"""Keeps linear layers apart that read the same activation, for compilers that would make one product of them.

TensorRT-RTX computes the projections of an attention as one product, and then copies each out of it: at 32,760 tokens
the copies are what decides how much memory a transformer takes. It leaves a product alone that is written in another
way. Knows the form of linear layers in a graph. Knows nothing of models.
"""

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mutoscope_export.passes.fold_weights import lazy


def separate_projections(model: ir.Model) -> bool:
    """Of the linear layers that share an activation, turns the last into a `Gemm` by a transposed weight."""
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        if _is_linear(node):
            activation = node.inputs[0]
            assert activation is not None
            readers.setdefault(activation, []).append(node)
    shared = [nodes for nodes in readers.values() if len(nodes) > 1]
    for nodes in shared:
        _as_gemm(model.graph, nodes[-1])
    if shared:
        RemoveUnusedNodesPass()(model)
    return bool(shared)


def _is_linear(node: ir.Node) -> bool:
    """A `MatMul` of an activation `[B, S, E]` by a stored weight `[E, E']`, followed by nothing but its bias."""
    if node.op_type != "MatMul":
        return False
    weight = node.inputs[1]
    assert weight is not None
    uses = tuple(node.outputs[0].uses())
    return (
        weight.is_initializer()
        and weight.shape is not None
        and len(weight.shape) == 2
        and len(uses) == 1
        and uses[0].node.op_type == "Add"
        and uses[0].node.inputs[1].is_initializer()
    )


def _as_gemm(graph: ir.Graph, product: ir.Node) -> None:
    """`MatMul(x, W) + b` becomes `reshape(Gemm(rows of x, transpose of W, b))`."""
    x, weight = product.inputs
    addition = product.outputs[0].uses()[0].node
    bias, output = addition.inputs[1], addition.outputs[0]
    assert x is not None and weight is not None and weight.const_value is not None
    rows, columns = weight.const_value.shape.numpy()
    turned = lazy(lambda array: array.T, weight.const_value, weight.const_value.dtype, (columns, rows))
    tape: list[ir.Node] = []

    def emit(op_type: str, *inputs: ir.Value | None, name: str, **attributes: int) -> ir.Value:
        tape.append(ir.node(op_type, inputs, attributes or None))
        tape[-1].outputs[0].name = f"{output.name}.{name}"
        return tape[-1].outputs[0]

    def stored(tensor: ir.TensorProtocol, name: str) -> ir.Value:
        value = ir.Value(name=name, const_value=tensor)
        value.shape, value.dtype = ir.Shape(tensor.shape), tensor.dtype
        graph.register_initializer(value)
        return value

    flat = emit("Reshape", x, stored(ir.tensor([-1, rows]), f"{output.name}.rows"), name="flat")
    mixed = emit("Gemm", flat, stored(turned, f"{weight.name}.turned"), bias, name="gemm", transB=1)
    width = stored(ir.tensor([columns]), f"{output.name}.width")
    shape = emit("Concat", emit("Shape", x, name="batch", start=0, end=2), width, name="shape", axis=0)
    result = emit("Reshape", mixed, shape, name="result")
    result.shape, result.dtype = output.shape, output.dtype
    graph.insert_before(addition, tape)
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    result.name, output.name = output.name, None
    graph.remove(addition, safe=True)
    graph.remove(product, safe=True)
