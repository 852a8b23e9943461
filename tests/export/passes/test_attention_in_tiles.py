"""Attention in tiles gives what attention gives, and keeps no scores."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from mutoscope_export.passes.attention_in_tiles import attention_in_tiles

RANDOM = np.random.default_rng(1)


def parsed(call: str, tokens: str = "S") -> ir.Model:
    inputs = f"float[B, {tokens}, 32] q, float[B, L, 32] k, float[B, L, 32] v"
    return ir.from_proto(
        onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : 23]> attend ({inputs}) => (float[B, {tokens}, 32] y) {{ {call} }}'
        )
    )


def run(model: ir.Model, **feeds: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], feeds)[0]


@pytest.mark.parametrize("scale", ["", ", scale=0.5"])
def test_the_result_is_that_of_softmax_by_hand(scale: str) -> None:
    model = parsed(f"y = Attention<q_num_heads=4, kv_num_heads=4{scale}>(q, k, v)")
    assert attention_in_tiles(model)
    assert [node.op_type for node in model.graph] == ["MultiHeadAttention"]
    q, k, v = (RANDOM.standard_normal((2, tokens, 32), np.float32) for tokens in (70, 11, 11))
    heads = [x.reshape(2, -1, 4, 8).transpose(0, 2, 1, 3).astype(np.float64) for x in (q, k, v)]
    scores = np.exp(heads[0] @ heads[1].swapaxes(2, 3) * (0.5 if scale else 8**-0.5))
    expected = (scores / scores.sum(-1, keepdims=True) @ heads[2]).transpose(0, 2, 1, 3).reshape(2, 70, 32)
    np.testing.assert_allclose(run(model, q=q, k=k, v=v), expected, atol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        "y = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v)",
        "y = Attention<q_num_heads=4, kv_num_heads=4, is_causal=1>(q, k, v)",
        "y = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v, q)",
        "y = Softmax(q)",
    ],
)
def test_any_other_attention_stays_as_it_is(call: str) -> None:
    model = parsed(call)
    assert not attention_in_tiles(model)
    assert "MultiHeadAttention" not in [node.op_type for node in model.graph]
