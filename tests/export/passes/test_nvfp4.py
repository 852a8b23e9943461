"""Layers in NVFP4 against ONNX's own reference of a block's scales and of values in four bits, and on ONNX Runtime."""

from __future__ import annotations

import collections
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from mutoscope_engines.cache.identity import ShapeRange, content_of
from mutoscope_engines.targets import find_target
from mutoscope_engines.tensorrt.library import LIBRARIES
from mutoscope_engines.tensorrt.process import compile_in_process
from mutoscope_export.errors import ExportError
from mutoscope_export.graphs.weight_files import WeightFolder
from mutoscope_export.passes.half_weights import half_weights
from mutoscope_export.passes.in_float32 import InFloat32
from mutoscope_export.passes.nvfp4 import Nvfp4
from mutoscope_export.passes.nvfp4_in_float32 import nvfp4_in_float32
from mutoscope_export.passes.project_in_turn import project_in_turn
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

RANDOM = np.random.default_rng(9)
SCALES = {"w": 2.0**-8, "v": 2.0**-8}
TWO = "{ a = MatMul(x, w) b = Gelu(a) c = MatMul(x, v) y = Add(b, c) }"


class TRT_FP4DynamicQuantize(OpRun):  # noqa: N801  # its name is that of the operator
    """TensorRT's operator as its documentation describes it, in float64."""

    op_domain = "trt"

    def _run(self, x: Any, scale: Any, axis: int = 0, block_size: int = 0, scale_type: int = 0) -> Any:
        assert (axis, block_size, scale_type) == (-1, 16, onnx.TensorProto.FLOAT8E4M3FN)
        blocks = x.astype(np.float64).reshape(*x.shape[:-1], -1, 16) / float(scale)
        needed = (np.abs(blocks).max(-1) / 6).clip(2.0**-9, 448).astype(ml_dtypes.float8_e4m3fn)
        values = blocks / needed.astype(np.float64)[..., None]
        return values.clip(-6, 6).reshape(x.shape).astype(ml_dtypes.float4_e2m1fn), needed


def parsed(body: str = TWO, dtype: str = "float", **tensors: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 23]> linear ({dtype}[B, S, 32] x) => ({dtype}[B, S, 8] y) {body}'
    )
    given = {name: RANDOM.standard_normal((32, 8)).astype(np.float32) for name in "wv"} | tensors
    numbers = {
        name: value.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else value for name, value in given.items()
    }
    proto.graph.initializer.extend(
        ir.to_proto(ir.Tensor(value, name=name)) for name, value in numbers.items() if f", {name})" in body
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def activations(*shape: int) -> np.ndarray:
    x = RANDOM.standard_normal((*shape, 32)).astype(np.float32)
    x[0, 0, :16] = 0
    x[0, 0, 16:] *= 1e-7  # whose scale is the least of E4M3
    x[-1, -1, 3] = 50  # beyond 6 * 448 / 256
    return x


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("shape", [(1, 1), (2, 5)])
def test_the_graph_that_a_cpu_runs_has_the_numbers_of_the_operators(shape: tuple[int, int]) -> None:
    model, x = parsed(), activations(*shape)
    plain = run(model, x)
    assert Nvfp4(SCALES)(model)
    expected = ReferenceEvaluator(ir.to_proto(model), new_ops=[TRT_FP4DynamicQuantize]).run(None, {"x": x})[0]
    assert nvfp4_in_float32(model)
    given = run(model, x)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)
    assert np.linalg.norm(given - plain) > 0.05 * np.linalg.norm(plain)  # or nothing was rounded


def test_both_operands_of_a_product_are_in_four_bits_and_what_two_layers_read_is_quantized_once() -> None:
    model = parsed()
    Nvfp4(SCALES)(model)
    assert collections.Counter(node.op_type for node in model.graph) == {
        "TRT_FP4DynamicQuantize": 1, "DequantizeLinear": 6, "MatMul": 2, "Gelu": 1, "Add": 1,
    }  # fmt: skip
    products = [node for node in model.graph if node.op_type == "MatMul"]
    for value in (value for node in products for value in node.inputs):
        assert value is not None and value.producer().inputs[0].dtype == ir.DataType.FLOAT4E2M1
    assert model.opset_imports["trt"] == 1


def test_a_weight_takes_nine_sixteenths_of_a_byte_in_its_file(tmp_path: Path) -> None:
    model = parsed("{ y = MatMul(x, w) }", w=RANDOM.standard_normal((32, 1024)).astype(np.float32))
    Nvfp4({"w": 1.0})(model)
    assert WeightFolder(tmp_path).save(model, "model.onnx").num_bytes == 32 * 1024 * 9 // 16
    stored = ir.load(tmp_path / "model.onnx").graph.initializers
    assert {value.dtype.name for value in stored.values()} == {"FLOAT4E2M1", "FLOAT8E4M3FN", "FLOAT"}


def test_a_layer_that_waits_waits_by_what_it_reads() -> None:
    """Because its weight is a constant then, which an engine stores in four bits."""
    model = parsed("{ a = MatMul(x, w) c = MatMul(x, v) y = Add(a, c) }", "bfloat16")
    project_in_turn(model)
    Nvfp4(SCALES)(model)
    first, second = (node for node in model.graph if node.op_type == "TRT_FP4DynamicQuantize")
    waiting = second.inputs[0].producer()
    assert (first.inputs[0].name, waiting.op_type, waiting.inputs[0].name) == ("x", "Add", "x")
    assert not any(value.uses() for name, value in model.graph.initializers.items() if name in SCALES)


def test_a_weight_that_is_stored_in_half_precision_is_quantized_as_it_was() -> None:
    weights = {name: RANDOM.standard_normal((32, 8)).astype(np.float16).astype(np.float32) for name in "wv"}
    model, stored = (parsed(**weights) for _ in range(2))
    assert half_weights(stored)
    x, results = activations(2, 3), []
    for each in (model, stored):
        Nvfp4(SCALES)(each)
        nvfp4_in_float32(each)
        results.append(run(each, x))
    assert np.array_equal(*results)


def test_in_bfloat16_every_number_is_as_in_float32() -> None:
    """The products are summed in float32 in both, so that rounding the result alone is left."""
    weights = {name: RANDOM.standard_normal((32, 8)).astype(ml_dtypes.bfloat16).astype(np.float32) for name in "wv"}
    wide, half = parsed("{ y = MatMul(x, w) }", **weights), parsed("{ y = MatMul(x, w) }", "bfloat16", **weights)
    x = activations(2, 4).astype(ml_dtypes.bfloat16).astype(np.float32)
    for model in (wide, half):
        Nvfp4({"w": SCALES["w"]})(model)
        nvfp4_in_float32(model)
    InFloat32(rounded=True)(half)
    expected = run(wide, x).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_allclose(run(half, x), expected, rtol=2**-7)


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_an_engine_for_rtx_50_has_its_weights_in_four_bits(tmp_path: Path) -> None:
    model = parsed(
        "{ a = MatMul(x, w) y = MatMul(a, v) }",
        "bfloat16",
        w=RANDOM.standard_normal((32, 1024)).astype(np.float32),
        v=RANDOM.standard_normal((1024, 8)).astype(np.float32),
    )
    Nvfp4(SCALES)(model)
    WeightFolder(tmp_path).save(model, "model.onnx")
    library, shapes = LIBRARIES["tensorrt-rtx"], ShapeRange((1, 1, 32), (1, 64, 32), (1, 64, 32))
    content = content_of(tmp_path / "model.onnx", tmp_path / "model.onnx.data")
    identity = library.identity(content, "nvfp4", [find_target("rtx50")], {"x": shapes})
    compiled = compile_in_process(tmp_path / "model.onnx", tmp_path / "engine", library.name, identity)
    assert compiled.weight_bytes < 1024 * 40  # one byte each, as in FP8


def test_a_graph_without_four_bits_stays_as_it_is() -> None:
    model = parsed()
    assert not nvfp4_in_float32(model)
    assert [node.op_type for node in model.graph] == ["MatMul", "Gelu", "MatMul", "Add"]


@pytest.mark.parametrize(
    ("body", "weight", "message"),
    [
        (TWO, None, "no MatMul has the weight other"),
        ("{ z = Transpose<perm = [0, 2, 1]>(x) y = MatMul(z, other) }", np.ones((24, 8)), r"needs to be \[16 n, m\]"),
    ],
)
def test_what_has_no_such_form_is_refused(body: str, weight: np.ndarray | None, message: str) -> None:
    tensors = {} if weight is None else {"other": weight.astype(np.float32)}
    with pytest.raises(ValueError, match=message):
        Nvfp4({"other": 1.0})(parsed(body, **tensors))


def test_a_weight_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ExportError, match="w holds NaN or infinity"):
        Nvfp4(SCALES)(parsed(w=np.full((32, 8), np.nan, np.float32)))
