"""Layers in eight bits against plain NumPy. What a format holds exactly must come out so; its numbers are here."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from mutoscope_engines.backends import load_backend
from mutoscope_engines.session import SessionOptions
from mutoscope_export.errors import ExportError
from mutoscope_export.graphs.number_formats import E4M3, INT8, NumberFormat
from mutoscope_export.passes.static_quantization import StaticQuantization

RANDOM = np.random.default_rng(6)
BIAS = np.array([0.5, -1, 2], np.float32)
# The numbers of E4M3 by its definition: four bits of exponent with bias 7, three of mantissa; all ones is NaN.
POSITIVE = np.array(
    [mantissa / 8 * 2.0**-6 for mantissa in range(8)]
    + [(1 + mantissa / 8) * 2.0 ** (exponent - 7) for exponent in range(1, 16) for mantissa in range(8)][:-1],
    np.float32,
)
NUMBERS = {E4M3: np.concatenate([-POSITIVE[:0:-1], POSITIVE]), INT8: np.arange(-128, 128, dtype=np.float32)}
both_formats = pytest.mark.parametrize("number_format", NUMBERS, ids=lambda number_format: number_format.name)


def nearest(x: np.ndarray, number_format: NumberFormat = E4M3) -> np.ndarray:
    """The number of the format nearest to each value; beyond the largest, that."""
    numbers = NUMBERS[number_format]
    return numbers[np.abs(np.asarray(x, np.float64)[..., None] - numbers).argmin(-1)]


def exact_operands(number_format: NumberFormat = E4M3) -> tuple[np.ndarray, np.ndarray]:
    """Activations that are numbers of the format times 1/4, and weights that are such times a power of two a column."""
    numbers = NUMBERS[number_format]
    numbers = numbers[(np.abs(numbers) >= 1) & (numbers >= -number_format.largest)]
    x, w = (RANDOM.choice(numbers, shape).astype(np.float32) for shape in ((4, 8), (8, 3)))
    w[0] = number_format.largest
    return x / 4, w * np.array([1, 0.25, 8], np.float32)


def parsed(body: str, **tensors: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 23]> linear (float[S, 8] x) => (float[S, 3] y) {body}'
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in tensors.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # as our backend sets it
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_the_numbers_of_e4m3_are_253_and_the_largest_is_448() -> None:
    assert (len(set(NUMBERS[E4M3])), NUMBERS[E4M3].max()) == (253, E4M3.largest)


@pytest.mark.parametrize(
    ("body", "transposed"),
    [
        ("{ a = MatMul(x, w) y = Add(a, b) }", False),
        ("{ y = Gemm(x, w, b) }", False),
        ("{ y = Gemm<transB=1>(x, w, b) }", True),
    ],
)
@both_formats
def test_what_a_format_can_hold_comes_out_exactly(body: str, transposed: bool, number_format: NumberFormat) -> None:
    x, w = exact_operands(number_format)
    model = parsed(body, w=np.ascontiguousarray(w.T) if transposed else w, b=BIAS)
    assert StaticQuantization(number_format, {"w": 0.25})(model)
    stored = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert "w" not in stored and number_format.dtype in stored.values()
    np.testing.assert_allclose(run(model, x), x @ w + BIAS, rtol=1e-6)


@pytest.mark.parametrize(("number_format", "ends"), [(E4M3, [56, -56, 0]), (INT8, [127 / 8, -16, 0])])
def test_what_it_cannot_hold_is_rounded_to_the_nearest_and_cut_off_at_the_end(
    number_format: NumberFormat, ends: list[float]
) -> None:
    x, w = RANDOM.standard_normal((50, 8), np.float32), np.zeros((8, 3), np.float32)
    w[:3] = np.eye(3)
    x[0, :3] = 90, -90, 1e-9
    model = parsed("{ y = MatMul(x, w) }", w=w)
    StaticQuantization(number_format, {"w": 0.125})(model)
    expected = nearest(x[:, :3] / 0.125, number_format) * 0.125
    assert expected[0].tolist() == ends
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-6)


def test_each_output_channel_has_its_own_scale() -> None:
    x = RANDOM.standard_normal((64, 8), np.float32)
    w = RANDOM.standard_normal((8, 3), np.float32) * np.array([1e-3, 1, 1e3], np.float32)
    model = parsed("{ y = MatMul(x, w) }", w=w)
    StaticQuantization(E4M3, {"w": E4M3.scale(float(np.abs(x).max()), 1.0)})(model)
    expected = x @ w
    error = np.linalg.norm(run(model, x) - expected, axis=0) / np.linalg.norm(expected, axis=0)
    assert 0.005 < error.max() < 0.06


def test_the_backend_runs_it(tmp_path: Path) -> None:
    """Left to itself, ONNX Runtime fuses the dequantizations into an operator for integers."""
    x, w = exact_operands()
    model = parsed("{ y = MatMul(x, w) }", w=w)
    StaticQuantization(E4M3, {"w": 0.25})(model)
    ir.save(model, tmp_path / "model.onnx")
    with load_backend("onnxruntime").open(tmp_path / "model.onnx", SessionOptions(threads=1)) as session:
        np.testing.assert_allclose(session.run({"x": x})["y"].numpy(), x @ w, rtol=1e-6)


def test_a_column_of_zeros_stays_zero() -> None:
    x, w = exact_operands()
    w[:, 1] = 0
    model = parsed("{ y = MatMul(x, w) }", w=w)
    StaticQuantization(E4M3, {"w": 0.25})(model)
    np.testing.assert_array_equal(run(model, x)[:, 1], 0)


def test_layers_that_read_the_same_with_one_scale_share_its_quantization() -> None:
    x, w = exact_operands()
    model = parsed(
        "{ p = MatMul(x, w0) q = MatMul(x, w1) r = MatMul(x, w0) s = Add(p, q) y = Add(s, r) }", w0=w, w1=2 * w
    )
    StaticQuantization(E4M3, {"w0": 0.25, "w1": 0.25})(model)
    count = collections.Counter(node.op_type for node in model.graph)
    assert (count["QuantizeLinear"], count["DequantizeLinear"], count["MatMul"]) == (1, 3, 3)
    np.testing.assert_allclose(run(model, x), 4 * (x @ w), rtol=1e-6)


def test_layers_that_are_not_named_keep_their_precision_and_read_the_exact_activation() -> None:
    x, w = exact_operands()
    x *= 1.01
    model = parsed("{ a = MatMul(x, quantized) c = MatMul(x, wide) y = Sub(c, a) }", quantized=np.zeros_like(w), wide=w)
    StaticQuantization(E4M3, {"quantized": 0.25})(model)
    assert "wide" in model.graph.initializers
    np.testing.assert_allclose(run(model, x), x @ w, rtol=1e-6)


def test_in_a_bfloat16_graph_scales_and_the_dequantized_side_are_bfloat16() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 23]> g (bfloat16[S, 8] x) => (bfloat16[S, 3] y) { y = MatMul(x, w) }'
    )
    weight = ir.tensor(exact_operands()[1] * np.float32(1.03), ir.DataType.FLOAT).numpy()
    proto.graph.initializer.append(ir.to_proto(ir.Tensor(weight.astype(ir.DataType.BFLOAT16.numpy()), name="w")))
    model = ir.from_proto(proto)
    StaticQuantization(E4M3, {"w": 0.1})(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)  # types must agree all the way to y
    types = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert types["w.scale"] == ir.DataType.BFLOAT16
    quantized = model.graph.initializers["w.fp8"].const_value.numpy().astype(np.float32)
    scale = model.graph.initializers["w.scale"].const_value.numpy().astype(np.float32)
    # Quantized with the scale as it is stored, not as it was before it was rounded.
    exact = weight.astype(ir.DataType.BFLOAT16.numpy()).astype(np.float32)
    np.testing.assert_array_equal(quantized, nearest(exact / scale))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(value: float) -> None:
    _, w = exact_operands()
    w[2, 1] = value
    with pytest.raises(ExportError, match="query holds NaN or infinity"):
        StaticQuantization(E4M3, {"query": 1.0})(parsed("{ y = MatMul(x, query) }", query=w))


def test_a_name_that_is_no_weight_is_refused_with_some_that_are() -> None:
    with pytest.raises(ValueError, match=r"no weight is called v; the graph's weights are named like w"):
        StaticQuantization(E4M3, {"v": 1.0})(parsed("{ y = MatMul(x, w) }", w=exact_operands()[1]))


def test_what_is_not_a_linear_layer_is_refused() -> None:
    model = parsed("{ a = MatMul(x, w) y = Add(a, b) }", w=exact_operands()[1], b=BIAS)
    with pytest.raises(ValueError, match="cannot be quantized: supported are MatMul and Gemm"):
        StaticQuantization(E4M3, {"b": 1.0})(model)


def test_the_scale_puts_the_largest_magnitude_with_its_margin_at_the_end_of_e4m3() -> None:
    assert E4M3.scale(44.8, 1.1) * 448 == pytest.approx(49.28)
    assert E4M3.scale(0.0, 1.1) > 0
