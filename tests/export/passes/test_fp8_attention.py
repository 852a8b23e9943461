"""FP8 attention against attention written out in NumPy, with every operand rounded to E4M3 where the graph should."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from mutoscope_export.passes.fp8_attention import AttentionScales, Fp8Attention

RANDOM = np.random.default_rng(7)
HEADS, WIDTH = 2, 4
CHANNELS = HEADS * WIDTH
SCALES = AttentionScales(queries=0.02, keys=0.03, values=0.01)
PLAIN = "q_num_heads=2, kv_num_heads=2"


def parsed(options: str = PLAIN, inputs: str = "q, k, v") -> ir.Model:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        g (float[B, S, 8] q, float[B, T, 8] k, float[B, T, 8] x, bool[S, T] m) => (float[B, S, 8] y) {{
            p = MatMul(x, w) v = Add(p, b) y = Attention<{options}>({inputs})
        }}"""
    )
    weights = {"w": np.eye(CHANNELS, dtype=np.float32), "b": np.zeros(CHANNELS, np.float32)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def feeds(branches: int, tokens: int, others: int) -> dict[str, np.ndarray]:
    sizes = {"q": tokens, "k": others, "x": others}
    made = {name: RANDOM.standard_normal((branches, size, CHANNELS), np.float32) for name, size in sizes.items()}
    return made | {"m": np.ones((tokens, others), bool)}


def run(model: ir.Model, given: dict[str, np.ndarray]) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # as our backend sets it
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, given)[0]


def rounded(x: np.ndarray, scale: float) -> np.ndarray:
    return np.clip(x / np.float32(scale), -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale


def expected(given: dict[str, np.ndarray], *, fp8: bool, scale: float = WIDTH**-0.5) -> np.ndarray:
    q, k, v = (given[name].reshape(*given[name].shape[:2], HEADS, WIDTH) for name in "qkx")
    half = np.sqrt(scale)
    q, k = half * q, half * k
    if fp8:
        q, k = rounded(q, half * SCALES.queries), rounded(k, half * SCALES.keys)
        v = rounded(v, SCALES.values)
    scores = np.einsum("bsnw,btnw->bnst", q, k)
    probabilities = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    if fp8:
        probabilities = rounded(probabilities, 1 / 448)
    return np.einsum("bnst,btnw->bsnw", probabilities, v).reshape(given["q"].shape)


@pytest.mark.parametrize(("options", "scale"), [(PLAIN, 0.5), (f"{PLAIN}, scale=0.09", 0.09)])
@pytest.mark.parametrize("sizes", [(2, 5, 5), (1, 3, 7)], ids=["to itself", "to others"])
def test_both_products_have_their_operands_in_e4m3(options: str, scale: float, sizes: tuple[int, int, int]) -> None:
    given = feeds(*sizes)
    exact = run(parsed(options), given)
    np.testing.assert_allclose(exact, expected(given, fp8=False, scale=scale), atol=1e-6)
    model = parsed(options)
    assert Fp8Attention({"w": SCALES})(model)
    assert "Attention" not in [node.op_type for node in model.graph]
    quantized = run(model, given)
    # Sums in another order may round a value near the middle of two E4M3 numbers to the other.
    np.testing.assert_allclose(quantized, expected(given, fp8=True, scale=scale), atol=2e-3)
    assert 0.005 < np.linalg.norm(quantized - exact) / np.linalg.norm(exact) < 0.06


def test_every_product_reads_two_dequantized_operands_as_the_fusion_wants_it() -> None:
    model = parsed()
    Fp8Attention({"w": SCALES})(model)
    products = [node for node in model.graph if node.op_type == "MatMul" and node.inputs[1].name != "w"]
    assert len(products) == 2
    for product in products:
        assert [value.producer().op_type for value in product.inputs] == ["DequantizeLinear"] * 2
        for value in product.inputs:
            quantization = value.producer().inputs[0].producer()
            assert quantization.op_type == "QuantizeLinear"
            before = quantization.inputs[0].producer().op_type
            assert before == ("Softmax" if product is products[1] and value is product.inputs[0] else "Transpose")


def test_attention_that_is_not_named_stays() -> None:
    model = parsed()
    assert not Fp8Attention({})(model)
    assert "Attention" in [node.op_type for node in model.graph]


def test_a_name_that_no_attention_has_its_values_from_is_refused() -> None:
    with pytest.raises(ValueError, match="no Attention node has its values from u"):
        Fp8Attention({"w": SCALES, "u": SCALES})(parsed())


@pytest.mark.parametrize(
    ("options", "inputs"), [(f"{PLAIN}, is_causal=1", "q, k, v"), (PLAIN, "q, k, v, m")], ids=["causal", "masked"]
)
def test_attention_with_a_mask_is_refused(options: str, inputs: str) -> None:
    with pytest.raises(ValueError, match="which its FP8 form does not have"):
        Fp8Attention({"w": SCALES})(parsed(options, inputs))
