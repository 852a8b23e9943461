"""The type of a network is chosen after it was traced: constants, casts and weights follow, what is float32 stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from mutoscope_export.graphs.network_type import NetworkType

HEADER = '<ir_version: 10, opset_import: ["" : 23]> traced (float[S, 2] x) => (float[S, 2] y)'
# Of the five casts, two enter and leave the network, and one makes its weight.
BODY = """{
    n = Cast<to=11>(x) v = Cast<to=11>(w) m = MatMul(n, v)
    third = Constant<value = double {0.333333333333}>() t = Mul(m, third)
    wide = Cast<to=1>(t) same = Cast<to=1>(wide) y = Add(same, x)
}"""
WEIGHT = np.array([[1.5, -2], [3, 4.001]], np.float32)
X = np.array([[1, 2], [3, -0.1]], np.float32)


def traced() -> ir.Model:
    proto = onnx.parser.parse_model(HEADER + BODY)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(WEIGHT, "w"))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def in_type(dtype: ir.DataType) -> ir.Model:
    model = traced()
    assert NetworkType(dtype)(model)
    return model


def run(model: ir.Model) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


def test_float32_needs_no_cast_at_all():
    model = in_type(ir.DataType.FLOAT)
    assert [node.op_type for node in model.graph] == ["MatMul", "Constant", "Mul", "Add"]
    np.testing.assert_allclose(run(model), X @ WEIGHT / 3 + X, rtol=1e-6)


def test_half_precision_computes_the_network_in_it_and_the_rest_in_float32():
    model = in_type(ir.DataType.FLOAT16)
    assert [node.op_type for node in model.graph] == ["Cast", "Cast", "MatMul", "Constant", "Mul", "Cast", "Add"]
    product = X.astype(np.float16) @ WEIGHT.astype(np.float16)
    expected = (product * np.float16(0.333333333333)).astype(np.float32) + X
    np.testing.assert_allclose(run(model), expected, rtol=2e-3)


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_nothing_of_the_placeholder_is_left_and_every_type_is_consistent(dtype):
    proto = ir.to_proto(in_type(dtype))
    onnx.checker.check_model(proto, full_check=True)
    assert b"double" not in onnx.printer.to_text(proto).encode()


def test_a_clone_takes_one_type_and_leaves_the_graph_to_take_another():
    model = traced()
    NetworkType(ir.DataType.BFLOAT16)(model.clone())
    half = model.clone()
    NetworkType(ir.DataType.FLOAT16)(half)
    np.testing.assert_array_equal(run(half), run(in_type(ir.DataType.FLOAT16)))
    assert ir.DataType.DOUBLE in {value.dtype for node in model.graph for value in node.outputs}


def test_the_type_of_an_input_and_a_stored_weight_follow():
    model = in_type(ir.DataType.BFLOAT16)
    again = traced()
    for value in (again.graph.inputs[0], again.graph.initializers["w"]):
        value.dtype = ir.DataType.DOUBLE
    again.graph.initializers["w"].const_value = ir.Tensor(WEIGHT.astype(np.float64), name="w")
    NetworkType(ir.DataType.BFLOAT16)(again)
    assert again.graph.inputs[0].dtype == again.graph.initializers["w"].const_value.dtype == ir.DataType.BFLOAT16
    np.testing.assert_array_equal(
        again.graph.initializers["w"].const_value.numpy().astype(np.float32), [[1.5, -2], [3, 4]]
    )
    assert len(again.graph) < len(model.graph)
