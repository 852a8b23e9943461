"""Weights in half precision: which are stored so, and that nothing else changes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from mutoscope_export.graphs.edit import converted
from mutoscope_export.passes.half_weights import half_weights

FLOAT, FLOAT16, BFLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
RANDOM = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def beyond_float16() -> np.ndarray:
    w = random(64, 48).astype(ml_dtypes.bfloat16).astype(np.float32)
    w[0, 0] = 2.0**20
    return w


WEIGHTS = {
    "float16": (random(64, 48).astype(np.float16).astype(np.float32), FLOAT16),
    "bfloat16": (beyond_float16(), BFLOAT16),
    "float32": (random(64, 48), FLOAT),
}


def parsed(w: np.ndarray, outputs: str = "float[S, 48] y", body: str = "y = MatMul(x, w)") -> ir.Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 23]> linear (float[S, 64] x) => ({outputs}) {{ {body} }}'
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    return ir.from_proto(proto)


def run(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_weight_takes_the_half_type_that_holds_it_exactly_and_the_graph_computes_the_same(kind: str) -> None:
    w, stored = WEIGHTS[kind]
    x = random(5, 64)
    full, half = parsed(w), parsed(w)
    assert half_weights(half) == (stored != FLOAT)
    assert [tensor.data_type for tensor in ir.to_proto(half).graph.initializer] == [stored]
    np.testing.assert_array_equal(run(full, x)[0], run(half, x)[0])


def in_bfloat16(w: np.ndarray) -> ir.Model:
    """The same product with the weight rounded, as a bfloat16 graph has it."""
    model = parsed(w, body="widened = Cast<to=1>(w) y = MatMul(x, widened)")
    weight = model.graph.initializers["w"]
    weight.const_value, weight.dtype = converted(weight.const_value, ir.DataType.BFLOAT16), ir.DataType.BFLOAT16
    return model


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_bfloat16_graph_stores_the_bytes_of_the_float32_graph_where_these_are_half_ones(kind: str) -> None:
    w, stored = WEIGHTS[kind]
    full, rounded, half = parsed(w), in_bfloat16(w), in_bfloat16(w)
    half_weights(full)
    assert half_weights(half) == (stored == FLOAT16)
    (one,), (other,) = (ir.to_proto(model).graph.initializer for model in (full, half))
    assert (one.raw_data == other.raw_data) == (stored != FLOAT)
    x = random(5, 64)
    np.testing.assert_array_equal(run(rounded, x)[0], run(half, x)[0])


def test_a_weight_that_is_an_output_stays_as_it_is() -> None:
    w, _ = WEIGHTS["float16"]
    model = parsed(w, "float[S, 48] y, float[64, 48] w")
    assert not half_weights(model)
    np.testing.assert_array_equal(run(model, random(5, 64))[1], w)
