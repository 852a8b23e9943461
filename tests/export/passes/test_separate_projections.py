"""Layers that share an activation are written apart; what they compute stays."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from mutoscope_export.passes.separate_projections import separate_projections

HEADER = '<ir_version: 10, opset_import: ["" : 23]> layers (float[B, S, 3] x) => (float[B, S, 2] y)'
SHARED = """{
    q0 = MatMul(x, wq) q = Add(q0, b) k0 = MatMul(x, wk) k = Add(k0, b) v0 = MatMul(x, wv) v = Add(v0, b)
    qk = Mul(q, k) y = Add(qk, v)
}"""
APART = "{ q0 = MatMul(x, wq) q = Add(q0, b) g = Sigmoid(x) k0 = MatMul(g, wk) k = Add(k0, b) y = Mul(q, k) }"


def parsed(body: str) -> ir.Model:
    random = np.random.default_rng(0)
    proto = onnx.parser.parse_model(HEADER + body)
    for name in ("wq", "wk", "wv"):
        weight = random.standard_normal((3, 2)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0.5, -1], np.float32), "b"))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def run(model: ir.Model) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(1).standard_normal((2, 5, 3)).astype(np.float32)})[0]


def test_the_last_of_the_layers_becomes_a_gemm_and_the_result_stays():
    model = parsed(SHARED)
    expected = run(model)
    assert separate_projections(model)
    operators = [node.op_type for node in model.graph]
    assert operators.count("MatMul") == 2 and operators.count("Gemm") == 1
    assert "wv" not in model.graph.initializers
    np.testing.assert_allclose(run(model), expected, rtol=1e-5)


def test_layers_that_share_nothing_stay_as_they_are():
    model = parsed(APART)
    before = [node.op_type for node in model.graph]
    assert not separate_projections(model)
    assert [node.op_type for node in model.graph] == before
