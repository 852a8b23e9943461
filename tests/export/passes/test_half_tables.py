"""Tables in half precision: only those that rows are looked up in, in the type that loses least."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from mutoscope_export.passes.half_tables import half_tables

HEADER = '<ir_version: 10, opset_import: ["" : 23]> lookup (int64[S] ids) => (float[S, 6] y)'
RANDOM = np.random.default_rng(0).standard_normal((9000, 6)).astype(np.float32)
IDS = np.array([8999, 0, 4096, 7, 7])


def parsed(table: np.ndarray, body: str = "{ y = Gather(table, ids) }") -> ir.Model:
    proto = onnx.parser.parse_model(HEADER + body)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def run(model: ir.Model) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": IDS})[0]


def stored_type(model: ir.Model) -> tuple[str, str]:
    (table,) = model.graph.initializers.values()
    return table.name, table.dtype.name


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (RANDOM.astype(np.float16).astype(np.float32), "FLOAT16"),
        (RANDOM.astype(ml_dtypes.bfloat16).astype(np.float32) * np.float32(2.0**40), "BFLOAT16"),
    ],
)
def test_a_table_that_a_half_type_holds_gives_the_same_rows(table: np.ndarray, expected: str) -> None:
    model = parsed(table)
    assert half_tables(model)
    assert stored_type(model) == ("table.half", expected)
    np.testing.assert_array_equal(run(model), table[IDS])


def test_a_float32_table_takes_the_type_that_is_nearer() -> None:
    model = parsed(RANDOM)
    half_tables(model)
    assert stored_type(model)[1] == "FLOAT16"
    np.testing.assert_allclose(run(model), RANDOM[IDS], rtol=2**-11)
    model = parsed(RANDOM * np.float32(1e5))  # float16 ends at 65504
    half_tables(model)
    assert stored_type(model)[1] == "BFLOAT16"
    np.testing.assert_allclose(run(model), RANDOM[IDS] * 1e5, rtol=2**-8)


def test_two_look_ups_share_the_table() -> None:
    model = parsed(RANDOM, "{ a = Gather(table, ids) b = Gather(table, ids) y = Add(a, b) }")
    half_tables(model)
    assert list(model.graph.initializers) == ["table.half"]
    np.testing.assert_allclose(run(model), 2 * RANDOM[IDS], rtol=2**-11)


def test_what_is_also_read_whole_or_by_columns_stays_float32() -> None:
    for body in (
        "{ a = Gather(table, ids) b = ReduceSum<keepdims=0>(table) y = Add(a, b) }",
        "{ t = Gather<axis=1>(table, ids) y = Transpose<perm=[1, 0]>(t) }",
    ):
        model = parsed(RANDOM, body)
        assert not half_tables(model)
        assert stored_type(model) == ("table", "FLOAT")
