"""Float32 products as convolutions or sums give what NumPy gives in float64, and nothing else is changed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from mutoscope_export.passes.without_float32_gemm import without_float32_gemm

RANDOM = np.random.default_rng(2)
BODIES = {
    "tokens": ("float[B, S, 24] x", "{ y = MatMul(x, w) }", "float[B, S, 40] y", (2, 7, 24)),
    "rows": ("float[M, 24] x", "{ y = Gemm<transB = 1>(x, w, b) }", "float[M, 40] y", (3, 24)),
    "solver": ("float[K, 24] x", "{ n = Identity(w) y = MatMul(x, n) }", "float[K, 40] y", (4, 24)),
}


def parsed(case: str) -> tuple[ir.Model, np.ndarray, np.ndarray]:
    x, body, y, shape = BODIES[case]
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> g ({x}) => ({y}) {body}')
    weight, bias = (RANDOM.standard_normal(size).astype(np.float32) for size in ((24, 40), 40))
    stored = {"w": np.ascontiguousarray(weight.T) if "transB" in body else weight}
    if "b)" in body:
        stored["b"] = bias
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in stored.items())
    given = RANDOM.standard_normal(shape).astype(np.float32)
    expected = given.astype(np.float64) @ weight + stored.get("b", 0)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto)), given, expected


@pytest.mark.parametrize("case", BODIES)
def test_a_product_becomes_something_else_with_the_same_result(case: str) -> None:
    model, given, expected = parsed(case)
    assert without_float32_gemm(model)
    assert not {"MatMul", "Gemm"} & {node.op_type for node in model.graph}
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": given})[0], expected, rtol=1e-5, atol=1e-5)
    assert not without_float32_gemm(model)


def test_a_product_of_another_form_is_refused() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[B, S, 8] x, float[B, 8, S] z) => (float[B, S, S] y) '
        "{ y = MatMul(x, z) }"
    )
    with pytest.raises(ValueError, match=r"MatMul of x and z has ranks \[3, 3\]; supported are"):
        without_float32_gemm(ir.from_proto(proto))
