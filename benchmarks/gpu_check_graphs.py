"""Writes the small graphs that `mutoscope gpu-check` compiles, into the package; a test holds them against this.

    python -m benchmarks.gpu_check_graphs

`first` and `second` are two parts of one network in float32, `attention-bf16` and `attention-fp8` one attention at the
width of Wan 2.1 1.3B, the latter as the export writes it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from mutoscope_export.passes.fp8_attention import AttentionScales, Fp8Attention
from onnx import TensorProto, helper

FOLDER = Path(__file__).parent / "mutoscope_bench" / "gpu_check" / "graphs"
WIDTH, HEADS, CHANNELS = 1536, 12, 16


def graphs() -> dict[str, onnx.ModelProto]:
    """By file name."""
    x = ("x", TensorProto.FLOAT, ["n", 64])
    h, y = ("h", TensorProto.FLOAT, ["n", 64]), ("y", TensorProto.FLOAT, ["n", 64])
    w = ("w", TensorProto.FLOAT, [64, 64])
    product = helper.make_node("MatMul", ["x", "w"], ["h"])
    rest = [helper.make_node("Relu", ["h"], ["positive"]), helper.make_node("Add", ["positive", "x"], ["y"])]
    attention = attention_in(TensorProto.BFLOAT16)
    quantized = ir.from_proto(attention)
    Fp8Attention({"weight": AttentionScales(queries=3 / 448, keys=3 / 448, values=3 / 448)})(quantized)
    return {
        "first.onnx": _model([product], [x, w], [h]),
        "second.onnx": _model(rest, [h, x], [y]),
        "attention-bf16.onnx": attention,
        "attention-fp8.onnx": ir.to_proto(quantized),
    }


def attention_in(dtype: int) -> onnx.ModelProto:
    """queries, keys [1, s, 1536], source [1, s, 16] of the values -> mixed [1, s, 1536]"""
    values = np.random.default_rng(0).standard_normal((CHANNELS, WIDTH), np.float32) / 4
    weight = helper.make_tensor("weight", dtype, values.shape, values.ravel())
    inputs = [("queries", WIDTH), ("keys", WIDTH), ("source", CHANNELS)]
    casts = [helper.make_node("Cast", [name], [f"{name}16"], to=dtype) for name, _ in inputs]
    nodes = [
        *casts,
        helper.make_node("MatMul", ["source16", "weight"], ["values"]),
        helper.make_node(
            "Attention", ["queries16", "keys16", "values"], ["mixed16"], q_num_heads=HEADS, kv_num_heads=HEADS
        ),
        helper.make_node("Cast", ["mixed16"], ["mixed"], to=TensorProto.FLOAT),
    ]
    specs = [(name, TensorProto.FLOAT, [1, "s", width]) for name, width in inputs]
    model = _model(nodes, specs, [("mixed", TensorProto.FLOAT, [1, "s", WIDTH])], [weight])
    return onnx.shape_inference.infer_shapes(model)


def _model(nodes, inputs, outputs, weights=()) -> onnx.ModelProto:
    ends = [[helper.make_tensor_value_info(*value) for value in values] for values in (inputs, outputs)]
    graph = helper.make_graph(nodes, "check", *ends, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, model in graphs().items():
        (FOLDER / name).write_bytes(model.SerializeToString())
