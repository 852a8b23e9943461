"""Three frames side by side, and a convolution over three frames, give the same; other convolutions stay."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from mutoscope_export.passes.convolve_over_time import convolve_over_time

HEADER = '<ir_version: 10, opset_import: ["" : 23]> decoder (float[PAST_T, 2, H, W] x) => (float[NOW, 3, H, W] y)'
WINDOWS = """{
    zero = Constant<value_ints = [0]>() one = Constant<value_ints = [1]>() two = Constant<value_ints = [2]>()
    t = Constant<value_ints = [NOW]>() t1 = Constant<value_ints = [T1]>() t2 = Constant<value_ints = [PAST_T]>()
    a = Slice(x, zero, t, zero, one) b = Slice(x, one, t1, zero, one) c = Slice(x, two, t2, zero, one)
    windows = Concat<axis = 1>(FIRST, b, LAST) CONVOLUTIONS
}"""
WEIGHT = np.random.default_rng(0).standard_normal((3, 6, 3, 1)).astype(np.float32)


def parsed(first: str = "a", last: str = "c", frames: int = 4, convolutions: str = "y = CONV") -> ir.Model:
    text = HEADER + WINDOWS.replace("FIRST", first).replace("LAST", last).replace("CONVOLUTIONS", convolutions)
    text = text.replace("CONV", "Conv<pads = [1, 0, 1, 0]>(windows, w, bias)")
    for name, number in {"PAST_T": frames + 2, "NOW": frames, "T1": frames + 1}.items():
        text = text.replace(name, str(number))
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(WEIGHT, "w"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, -2, 0.5], np.float32), "bias"))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def run(model: ir.Model, frames: int = 4) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(1).standard_normal((frames + 2, 2, 5, 4)).astype(np.float32)})[
        0
    ]


@pytest.mark.parametrize(
    "convolutions", ["y = CONV", "y = Conv<pads = [1, 0, 1, 0]>(windows, w)"], ids=["a bias", "no bias"]
)
def test_windows_become_one_convolution_over_time_with_the_same_result(convolutions):
    model = parsed(convolutions=convolutions)
    expected = run(model)
    assert convolve_over_time(model)
    (convolution,) = (node for node in model.graph if node.op_type == "Conv")
    assert convolution.inputs[1].shape == (3, 2, 3, 3, 1)
    assert not {"Slice", "Concat"} & {node.op_type for node in model.graph}
    np.testing.assert_allclose(run(model), expected, rtol=1e-5, atol=1e-5)


def test_a_weight_of_two_convolutions_stays_one():
    model = parsed(convolutions="u = CONV v = CONV y = Add(u, v)")
    expected = run(model)
    assert convolve_over_time(model)
    assert sum(len(value.shape) == 5 for value in model.graph.initializers.values()) == 1
    np.testing.assert_allclose(run(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("first", "last"), [("c", "a"), ("b", "b")])
def test_windows_in_another_order_are_left_alone(first, last):
    model = parsed(first, last)
    assert not convolve_over_time(model)
