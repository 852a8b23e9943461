"""Int8 layers against plain NumPy. Integers that quantization holds exactly must come out exactly."""

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
from mutoscope_export.passes.int8 import DynamicInt8

RANDOM = np.random.default_rng(5)
BIAS = np.array([0.5, -1, 2], np.float32)


def exact_operands() -> tuple[np.ndarray, np.ndarray]:
    """Activations 0..255 and weights that are integers of at most 127 times a power of two, one for each column.

    Neighbours in a column have different signs, so that their sum is at most 127, too.
    """
    x = RANDOM.integers(0, 256, (4, 8)).astype(np.float32)
    x[0, :2] = 0, 255
    magnitudes = RANDOM.integers(0, 128, (8, 3))
    magnitudes[0] = 127
    return x, checkered(magnitudes) * np.array([1, 0.25, 8], np.float32)


def checkered(magnitudes: np.ndarray) -> np.ndarray:
    """With signs that differ between all neighbours, in rows and in columns."""
    rows, columns = np.indices(magnitudes.shape)
    return np.where((rows + columns) % 2, -magnitudes, magnitudes).astype(np.float32)


def parsed(body: str, rows: int = 8, columns: int = 3, **tensors: np.ndarray) -> ir.Model:
    signature = f"linear (float[S, {rows}] x) => (float[S, {columns}] y)"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> {signature} {body}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in tensors.items())
    return ir.from_proto(proto)


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("body", "transposed"),
    [
        ("{ a = MatMul(x, w) y = Add(a, b) }", False),
        ("{ y = Gemm(x, w, b) }", False),
        ("{ y = Gemm<transB=1>(x, w, b) }", True),
    ],
)
def test_what_int8_can_hold_comes_out_exactly(body, transposed):
    x, w = exact_operands()
    model = parsed(body, w=np.ascontiguousarray(w.T) if transposed else w, b=BIAS)
    assert DynamicInt8("^w$")(model)
    operators = [node.op_type for node in model.graph]
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert "MatMulInteger" in operators and not {"MatMul", "Gemm"} & set(operators)
    np.testing.assert_array_equal(run(model, x), x @ w + BIAS)


def test_a_weight_that_is_read_both_ways_has_an_int8_form_for_each():
    x, _ = exact_operands()
    w = checkered(RANDOM.integers(0, 128, (8, 8)))
    np.fill_diagonal(w, 127)  # so that rows and columns have one scale
    picked = np.eye(8, 3, dtype=np.float32)
    model = parsed("{ a = MatMul(x, w) c = Gemm<transB=1>(x, w) d = Add(a, c) y = MatMul(d, p) }", w=w, p=picked)
    assert DynamicInt8("^w$")(model)
    np.testing.assert_array_equal(run(model, x), (x @ w + x @ w.T)[:, :3])


def summed_in_16_bits(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """`x @ w` as VPMADDUBSW and VPMADDWD compute it (Intel's manual, volume 2B): sums of two products saturate."""
    if odd := len(w) % 2:
        x, w = np.pad(x, ((0, 0), (0, odd))), np.pad(w, ((0, odd), (0, 0)))
    products = x[:, :, None].astype(np.int64) * w
    pairs = products[:, 0::2] + products[:, 1::2]
    return pairs.clip(-(2**15), 2**15 - 1).sum(axis=1)


WEIGHTS = {
    "normal": RANDOM.standard_normal((64, 5)),
    "uniform": RANDOM.uniform(-1, 1, (64, 5)),
    "all alike": np.full((64, 5), -0.3),
    "outliers beside each other": np.where(np.arange(64)[:, None] // 2 == 7, 50.0, RANDOM.standard_normal((64, 5))),
    "an outlier by itself": np.where(np.arange(64)[:, None] == 7, -50.0, RANDOM.standard_normal((64, 5))),
    "an odd number of rows": RANDOM.standard_normal((63, 5)),
    "a single row": RANDOM.standard_normal((1, 5)),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_no_sum_of_two_products_leaves_16_bits(name: str) -> None:
    """So that CPUs without VNNI sum as exactly as those with it."""
    w = WEIGHTS[name].astype(np.float32)
    quantized = quantize(w)
    # Activations that make the least and the largest sum of each column.
    lowest, highest = (quantized < 0) * 255, (quantized > 0) * 255
    for x in (lowest.T, highest.T, np.full((1, len(w)), 255)):
        np.testing.assert_array_equal(summed_in_16_bits(x, quantized), x @ quantized.astype(np.int64))


@pytest.mark.parametrize("name", WEIGHTS)
def test_as_many_steps_are_used_as_16_bits_allow(name: str) -> None:
    quantized = quantize(WEIGHTS[name].astype(np.float32)).astype(int)
    largest = np.abs(quantized).max(axis=0)
    if len(quantized) > 1:
        even = quantized[: len(quantized) // 2 * 2]
        largest = np.maximum(largest, np.abs(even[0::2] + even[1::2]).max(axis=0))
    assert ((largest == 127) | (largest == 128) | (largest == 126)).all()


def quantize(w: np.ndarray) -> np.ndarray:
    model = parsed("{ y = MatMul(x, w) }", *w.shape, w=w)
    DynamicInt8("w")(model)
    result: np.ndarray = model.graph.initializers["w.int8"].const_value.numpy()
    return result


def test_the_backend_sums_the_largest_products_exactly(tmp_path: Path) -> None:
    """255 times two neighbours that sum to 127, in every place."""
    x, w = np.full((2, 64), 255, np.float32), np.tile([[63.0], [64.0]], (32, 3)).astype(np.float32)
    x[0, 0] = 0
    model = parsed("{ y = MatMul(x, w) }", 64, w=w)
    DynamicInt8("w")(model)
    ir.save(model, tmp_path / "model.onnx")
    with load_backend("onnxruntime").open(tmp_path / "model.onnx", SessionOptions(threads=1)) as session:
        np.testing.assert_array_equal(session.run({"x": x})["y"].numpy(), x @ w)


def test_each_output_channel_has_its_own_scale():
    x = RANDOM.standard_normal((64, 8), np.float32)
    w = RANDOM.standard_normal((8, 3), np.float32) * np.array([1e-3, 1, 1e3], np.float32)
    model = parsed("{ y = MatMul(x, w) }", w=w)
    DynamicInt8("w")(model)
    expected = x @ w
    error = np.linalg.norm(run(model, x) - expected, axis=0) / np.linalg.norm(expected, axis=0)
    assert error.max() < 0.02


def outliers() -> tuple[np.ndarray, np.ndarray]:
    """Activations of which one is a thousand times the others; weights that int8 holds exactly."""
    x = RANDOM.standard_normal((64, 8)).astype(np.float32)
    x[5, 2] = 3000
    return x, exact_operands()[1]


@pytest.mark.parametrize(("digits", "least", "most"), [(1, 0.5, np.inf), (2, 0, 0.02)])
def test_a_second_digit_keeps_what_an_outlier_takes_from_the_others(digits, least, most):
    x, w = outliers()
    model = parsed("{ y = Gemm(x, w, b) }", w=w, b=BIAS)
    DynamicInt8("w", digits)(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    others = np.arange(len(x)) != 5
    expected = (x @ w + BIAS)[others]
    error = np.linalg.norm(run(model, x)[others] - expected) / np.linalg.norm(expected)
    assert least <= error <= most


def test_two_digits_are_taken_once_and_read_one_weight():
    w = exact_operands()[1]
    model = parsed("{ p = MatMul(x, w) q = MatMul(x, v) y = Add(p, q) }", w=w, v=2 * w)
    DynamicInt8("^[wv]$", 2)(model)
    count = collections.Counter(node.op_type for node in model.graph)
    assert (count["DynamicQuantizeLinear"], count["MatMulInteger"]) == (2, 4)
    assert sorted(model.graph.initializers) == ["v.int8", "v.scale", "w.int8", "w.scale"]


def test_a_column_of_zeros_stays_zero():
    x, w = exact_operands()
    w[:, 1] = 0
    model = parsed("{ y = MatMul(x, w) }", w=w)
    DynamicInt8("w")(model)
    np.testing.assert_array_equal(run(model, x)[:, 1], 0)


def test_an_activation_is_quantized_once_however_many_layers_read_it():
    x, w = exact_operands()
    model = parsed(
        "{ p = MatMul(x, w0) q = MatMul(x, w1) r = MatMul(x, w0) s = Add(p, q) y = Add(s, r) }", w0=w, w1=2 * w
    )
    DynamicInt8("^w")(model)
    count = collections.Counter(node.op_type for node in model.graph)
    assert (count["DynamicQuantizeLinear"], count["MatMulInteger"]) == (1, 3)
    assert sorted(model.graph.initializers) == ["w0.int8", "w0.scale", "w1.int8", "w1.scale"]
    np.testing.assert_array_equal(run(model, x), 4 * (x @ w))


def test_weights_outside_the_pattern_keep_their_precision():
    _, w = exact_operands()
    model = parsed("{ a = MatMul(x, quantized) c = MatMul(x, wide) y = Add(a, c) }", quantized=w, wide=w)
    DynamicInt8("quantized")(model)
    assert sorted(model.graph.initializers) == ["quantized.int8", "quantized.scale", "wide"]


def test_weights_too_small_for_an_exact_scale_keep_their_signs() -> None:
    """The scale of a column of subnormal numbers is rounded to a few of them, or to none."""
    w = np.zeros((8, 3), np.float32)
    w[0], w[1] = 2e-43, -2e-43
    model = parsed("{ y = MatMul(x, w) }", w=w)
    DynamicInt8("w")(model)
    quantized = model.graph.initializers["w.int8"].const_value.numpy()
    assert (quantized[0] > 0).all() and (quantized[1] == -quantized[0]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(value: float) -> None:
    _, w = exact_operands()
    w[2, 1] = value
    with pytest.raises(ExportError, match="query holds NaN or infinity"):
        DynamicInt8("query")(parsed("{ y = MatMul(x, query) }", query=w))


def test_a_pattern_without_a_match_is_refused():
    model = parsed("{ y = MatMul(x, w) }", w=exact_operands()[1])
    with pytest.raises(ValueError, match=r"no weight matches 'blocks'.*named like w"):
        DynamicInt8("blocks")(model)


@pytest.mark.parametrize(
    "body", ["{ a = MatMul(x, w) y = Add(a, b) }", "{ y = Gemm<alpha=2.0>(x, w, b) }"], ids=["bias", "alpha"]
)
def test_what_is_not_a_plain_linear_layer_is_refused(body):
    model = parsed(body, w=exact_operands()[1], b=BIAS)
    with pytest.raises(ValueError, match="cannot run in int8: supported are MatMul and Gemm"):
        DynamicInt8("^b$" if "Add" in body else "^w$")(model)
