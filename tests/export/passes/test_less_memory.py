"""The passes that keep a transformer's memory on a GPU small change no result, whatever the number of tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from mutoscope_export.passes.in_float32 import InFloat32
from mutoscope_export.passes.in_turn import out_of_turn
from mutoscope_export.passes.norm_from_half import norm_from_half
from mutoscope_export.passes.project_in_turn import project_in_turn
from mutoscope_export.passes.slice_feed_forward import SliceFeedForward

RANDOM = np.random.default_rng(5)
HEADER = '<ir_version: 10, opset_import: ["" : 23]> block (float16[B, S, 8] x, float16[B, L, 8] text) '
HEADER += "=> (float16[B, S, 8] y)"
BLOCK = """
    q_I = MatMul(x_I, wq) qb_I = Add(q_I, bias) q32_I = Cast<to = 1>(qb_I)
    qn_I = RMSNormalization<axis = -1, epsilon = 0.000001>(q32_I, wn) qh_I = Cast<to = 10>(qn_I)
    k_I = MatMul(S_I, wk) v_I = MatMul(S_I, wv)
    a_I = Attention<q_num_heads = 2, kv_num_heads = 2>(qh_I, k_I, v_I)
    h_I = MatMul(a_I, w1) hb_I = Add(h_I, bias1) g_I = Gelu(hb_I) o_I = MatMul(g_I, w2) y_I = Add(o_I, bias)
"""
WEIGHTS = {"wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "w1": (8, 24), "w2": (24, 8), "bias": (8,), "bias1": (24,)}


def parsed() -> ir.Model:
    """One block of attention to itself, and two that attend to one text."""
    body = "".join(
        BLOCK.replace("S_I", source).replace("x_I", fed).replace("_I", f"_{index}")
        for index, (fed, source) in enumerate([("x", "x"), ("y_0", "text"), ("y_1", "text")])
    )
    proto = onnx.parser.parse_model(f"{HEADER} {{ {body} y = Identity(y_2) }}")
    weights = {name: (RANDOM.standard_normal(shape) / 2).astype(np.float16) for name, shape in WEIGHTS.items()}
    weights["wn"] = RANDOM.standard_normal(8).astype(np.float32)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def run(model: ir.Model, branches: int, tokens: int) -> np.ndarray:
    model = ir.from_proto(ir.to_proto(model))  # a clone shares the types
    InFloat32(rounded=False)(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(tokens)
    feeds = {
        name: random.standard_normal((branches, size, 8)).astype(np.float32)
        for name, size in (("x", tokens), ("text", 5))
    }
    return session.run(None, feeds)[0]


CHANGES = {"slices": SliceFeedForward(3), "projections": project_in_turn, "norms": norm_from_half}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(("branches", "tokens"), [(1, 1), (2, 2), (2, 9), (1, 10), (2, 11)])
def test_the_result_is_the_same(change: Callable[[ir.Model], bool], branches: int, tokens: int) -> None:
    model = parsed()
    expected = run(model, branches, tokens)
    assert change(model)
    np.testing.assert_allclose(run(model, branches, tokens), expected, rtol=1e-5, atol=1e-5)


def test_a_feed_forward_is_computed_slice_after_slice() -> None:
    model = parsed()
    SliceFeedForward(3)(model)
    model.graph.sort()
    products = [node for node in model.graph if node.op_type == "MatMul" and node.inputs[1].name in ("w1", "w2")]
    assert len(products) == 3 * 3 * 2
    for earlier, later in zip(products[1:6:2], products[2:6:2], strict=False):
        assert earlier in ancestors_of(later.outputs[0].uses()[0].node)


def test_queries_keys_and_values_are_computed_one_after_the_other() -> None:
    model = parsed()
    project_in_turn(model)
    made = {value.name: node for node in model.graph for value in node.outputs}
    assert made["qh_0"] in ancestors_of(made["k_0"])
    assert made["k_0"] in ancestors_of(made["v_0"])


def test_a_block_waits_with_the_keys_of_a_text_until_its_queries_are_there() -> None:
    model = parsed()
    project_in_turn(model)
    made = {value.name: node for node in model.graph for value in node.outputs}
    for index in (1, 2):
        assert made[f"qb_{index}"] in ancestors_of(made[f"k_{index}"])
        assert made[f"k_{index}"] not in ancestors_of(made[f"v_{index}"])


def test_waits_can_be_taken_out_again() -> None:
    model = parsed()
    before = [node.op_type for node in model.graph]
    project_in_turn(model)
    assert out_of_turn(model)
    assert [node.op_type for node in model.graph] == before


def ancestors_of(node: ir.Node) -> set[ir.Node]:
    found, left = set(), [node]
    while left:
        for value in left.pop().inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer not in found:
                found.add(producer)
                left.append(producer)
    return found
