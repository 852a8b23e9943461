"""A half-precision graph, run in float32: rounded where it would round, or nowhere."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from mutoscope_export.passes.in_float32 import InFloat32

TEXT = """<ir_version: 10, opset_import: ["" : 23]>
half (float[S, 2] x, bfloat16[S, 2] cache) => (float[S, 2] y, bfloat16[S, 2] next) {
    n = Cast<to=16>(x) next = Add(n, cache) z = Mul(next, w) y = Cast<to=1>(z)
}"""
WEIGHT = np.array([1.0, 3.0], ml_dtypes.bfloat16)
X = np.array([[1.001, 2.003], [3.3, 257.0]], np.float32)
CACHE = np.array([[0.1, 0.2], [-3.0, 1.0]], np.float32)


def run(rounded: bool) -> list[np.ndarray]:
    proto = onnx.parser.parse_model(TEXT)
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.BFLOAT16, [2], WEIGHT.tobytes(), raw=True)
    proto.graph.initializer.append(weight)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    assert InFloat32(rounded)(model)
    proto = ir.to_proto(model)
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["x", "cache", "y", "next"]
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X, "cache": CACHE})


def nearest(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_every_value_is_rounded_to_bfloat16():
    y, following = run(rounded=True)
    expected = nearest(nearest(X) + nearest(CACHE))
    np.testing.assert_array_equal(following, expected)
    np.testing.assert_array_equal(y, nearest(expected * WEIGHT.astype(np.float32)))
    assert not np.array_equal(y, (X + CACHE) * WEIGHT.astype(np.float32))


def test_without_rounding_only_the_weights_are_of_half_precision():
    y, following = run(rounded=False)
    np.testing.assert_array_equal(following, X + CACHE)
    np.testing.assert_allclose(y, (X + CACHE) * WEIGHT.astype(np.float32), rtol=1e-6)


def test_a_graph_without_half_precision_stays_as_it_is():
    text = TEXT.replace("bfloat16", "float").replace("<to=16>", "<to=1>")
    model = ir.from_proto(onnx.parser.parse_model(text.replace(", w)", ", x)")))
    nodes = [node.op_type for node in model.graph]
    assert not InFloat32(rounded=True)(model)
    assert [node.op_type for node in model.graph] == nodes
