"""A graph with LoRA inputs against plain NumPy: `x·(W + A·B)`, in the form in which each precision has its weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from mutoscope_export.graphs.number_formats import E4M3
from mutoscope_export.graphs.parts import made_of, take_apart
from mutoscope_export.passes.half_weights import half_weights
from mutoscope_export.passes.in_turn import waits_for
from mutoscope_export.passes.int8 import DynamicInt8
from mutoscope_export.passes.lora_inputs import LoraInputs
from mutoscope_export.passes.static_quantization import StaticQuantization

RANDOM = np.random.default_rng(4)
X = RANDOM.standard_normal((5, 8), np.float32)
W = RANDOM.standard_normal((8, 3), np.float32).astype(np.float16).astype(np.float32)
BIAS = np.float32([1, 2, 3])
NAME = "layer.weight"
LORA = LoraInputs({NAME: (3, 8)}, ir.DataType.FLOAT)
MATMUL = "{ p = MatMul(x, layer)  y = Add(p, bias) }"


def a_lora(rank: int) -> dict[str, np.ndarray]:
    a, b = RANDOM.standard_normal((8, rank), np.float32), RANDOM.standard_normal((rank, 3), np.float32)
    return {f"{NAME}.lora_a": a, f"{NAME}.lora_b": b}


def product(lora: Mapping[str, np.ndarray]) -> np.ndarray:
    a, b = lora.values()
    result: np.ndarray = a @ b
    return result


def parsed(body: str = MATMUL, weight: np.ndarray = W, inputs: str = "float[S, 8] x", **others: np.ndarray) -> ir.Model:
    """The weights of `layer` and the others are called as torch's exporter calls them: "net.layer.weight"."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 23]> linear ({inputs}) => (float[S, 3] y) {body}'
    )
    weights = {"layer": weight, **others}
    for node in proto.graph.node:
        node.input[:] = [f"net.{name}.weight" if name in weights else name for name in node.input]
    tensors = {"bias": BIAS} | {f"net.{name}.weight": array for name, array in weights.items()}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in tensors.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def run(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    model.graph.sort()  # as `write_graph` does after all passes
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # as our backend sets it
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, dict(feeds))
    return outputs


@pytest.mark.parametrize("rank", [0, 1, 4])
@pytest.mark.parametrize(
    ("body", "weight"),
    [(MATMUL, W), ("{ y = Gemm <transB = 1> (x, layer, bias) }", W.T)],
    ids=["MatMul", "Gemm"],
)
def test_the_product_of_the_inputs_is_added_to_the_weight(body: str, weight: np.ndarray, rank: int) -> None:
    model, lora = parsed(body, np.ascontiguousarray(weight)), a_lora(rank)
    assert LORA(model)
    (y,) = run(model, {"x": X, **lora})
    assert np.allclose(y, X @ (W + product(lora)) + BIAS, rtol=1e-5, atol=1e-5)


def test_a_weight_that_is_stored_in_half_or_waits_for_its_turn_is_found() -> None:
    model, lora = parsed(), a_lora(2)
    assert half_weights(model) is False  # which leaves weights as small as this one
    cast = ir.tape.Tape(model.graph)
    weight = model.graph.initializers["net.layer.weight"]
    half = cast.initializer(ir.Tensor(W.astype(np.float16)), "net.layer.weight.half")
    product_node = next(node for node in model.graph if node.op_type == "MatMul")
    widened = ir.node("Cast", [half], {"to": ir.DataType.FLOAT})
    widened.outputs[0].dtype, widened.outputs[0].shape = weight.dtype, weight.shape
    model.graph.insert_before(product_node, widened)
    waiting = waits_for(model.graph, product_node, widened.outputs[0], model.graph.inputs[0])
    product_node.replace_input_with(1, waiting)
    LORA(model)
    (y,) = run(model, {"x": X, **lora})
    assert np.allclose(y, X @ (W + product(lora)) + BIAS, rtol=1e-5, atol=1e-5)


def test_layers_that_share_a_weight_share_the_sum() -> None:
    body = "{ h = MatMul(x, layer) i = MatMul(x, layer) p = Add(h, i) y = Add(p, bias) }"
    model, lora = parsed(body), a_lora(2)
    LORA(model)
    assert [value.name for value in model.graph.inputs] == ["x", *lora]
    assert sum(node.op_type == "MatMul" for node in model.graph) == 3
    (y,) = run(model, {"x": X, **lora})
    assert np.allclose(y, 2 * (X @ (W + product(lora))) + BIAS, rtol=1e-5, atol=1e-4)


def test_in_fp8_the_sum_is_rounded_with_the_scales_that_the_weight_has() -> None:
    """So a weight that the sum makes larger than the format holds at this scale is cut off at the largest."""
    model, lora = parsed(), a_lora(2)
    StaticQuantization(E4M3, {"net.layer.weight": 1 / 64})(model)
    LORA(model)
    (y,) = run(model, {"x": X, **lora})
    scales = np.abs(W).max(axis=0) / 448
    stored = E4M3.nearest(W / scales).astype(np.float32) * scales
    changed = E4M3.nearest((stored + product(lora)) / scales).astype(np.float32) * scales
    activations = E4M3.nearest(X * 64).astype(np.float32) / 64
    assert np.abs(changed).max() <= np.abs(W).max() * 1.0001 < np.abs(stored + product(lora)).max()
    assert np.allclose(y, activations @ changed + BIAS, rtol=1e-5, atol=1e-5)


def test_in_int8_the_products_of_the_inputs_stand_beside_that_of_the_layer() -> None:
    plain, model, lora = parsed(), parsed(), a_lora(2)
    for each in (plain, model):
        DynamicInt8("weight")(each)
    LORA(model)
    (base,), (y,) = run(plain, {"x": X}), run(model, {"x": X, **lora})
    assert np.allclose(y - base, X @ product(lora), rtol=1e-5, atol=1e-4)


def test_inputs_of_another_type_than_the_weight_become_of_its_type() -> None:
    model, lora = parsed(), {name: value.astype(np.float16) for name, value in a_lora(2).items()}
    LoraInputs(LORA.parameters, ir.DataType.FLOAT16)(model)
    (y,) = run(model, {"x": X, **lora})
    wide = {name: value.astype(np.float32) for name, value in lora.items()}
    assert np.allclose(y, X @ (W + product(wide)) + BIAS, rtol=1e-5, atol=1e-5)


def test_the_kernel_of_a_convolution_that_became_a_product_is_a_matrix() -> None:
    model = parsed()
    LoraInputs({NAME: (3, 2, 1, 2, 2)}, ir.DataType.FLOAT)(model)
    assert [list(value.shape or ()) for value in model.graph.inputs[1:]] == [[8, "R"], ["R", 3]]


def test_a_cut_counts_the_inputs_as_weights_so_that_what_depends_on_a_text_alone_is_still_a_part() -> None:
    body = "{ k = MatMul(text, keys) q = MatMul(x, layer) y = Mul(q, k) }"
    model = parsed(body, inputs="float[S, 8] x, float[S, 8] text", keys=-W)
    LoraInputs({NAME: (3, 8), "keys.weight": (3, 8)}, ir.DataType.FLOAT)(model)
    first, second = take_apart(model, made_of("text"))
    assert [value.name for value in first.graph.inputs] == ["text", "keys.weight.lora_a", "keys.weight.lora_b"]
    assert {value.name for value in second.graph.inputs} == {"x", "k", f"{NAME}.lora_a", f"{NAME}.lora_b"}


def test_a_graph_without_such_a_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="no linear layer whose weight is a parameter"):
        LoraInputs({"other.weight": (3, 8)}, ir.DataType.FLOAT)(parsed())


def test_a_layer_in_int8_of_two_digits_is_refused() -> None:
    model = parsed()
    DynamicInt8("weight", 2)(model)
    with pytest.raises(ValueError, match="in another form than that of a layer with one digit"):
        LORA(model)
