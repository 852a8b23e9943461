"""Small graphs through TensorRT-RTX, in this process and without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from mutoscope_engines.cache.identity import EngineIdentity, ShapeRange, content_of
from mutoscope_engines.errors import BackendUnavailableError, EngineError
from mutoscope_engines.system.file_hash import file_sha256
from mutoscope_engines.targets import find_target
from mutoscope_engines.tensorrt.builder import compile_engine
from mutoscope_engines.tensorrt.library import LIBRARIES
from onnx import TensorProto, helper

pytestmark = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
Make = Callable[..., Path]
LIBRARY = LIBRARIES["tensorrt-rtx"]


def identity_of(graph: Path, profile: dict[str, ShapeRange], target: str = "rtx40") -> EngineIdentity:
    return LIBRARY.identity(content_of(graph), "bf16", [find_target(target)], profile)


def attention(heads: int, size: int, kind: int) -> dict:
    """The parts of a graph: x [B, S, W] -> y, an attention over S."""
    width = heads * size
    values = [(name, TensorProto.FLOAT, ["B", "S", width]) for name in "xy"]
    weights = [helper.make_tensor(f"w_{name}", kind, [width, width], [0.5] * width**2) for name in "qkv"]
    nodes = [
        helper.make_node("Cast", ["x"], ["n"], to=kind),
        *(helper.make_node("MatMul", ["n", f"w_{name}"], [name]) for name in "qkv"),
        helper.make_node("Attention", ["q", "k", "v"], ["a"], q_num_heads=heads, kv_num_heads=heads),
        helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT),
    ]
    return {"nodes": nodes, "inputs": values[:1], "outputs": values[1:], "initializers": weights}


def tokens(width: int, count: int = 64) -> dict[str, ShapeRange]:
    return {"x": ShapeRange((1, 1, width), (2, count, width), (2, count, width))}


def test_an_engine_is_written_as_it_is_reported(make_graph: Make, tmp_path: Path):
    graph = make_graph(**attention(4, 64, TensorProto.BFLOAT16))
    engine = tmp_path / "engine"
    compiled = compile_engine(graph, engine, "tensorrt-rtx", identity_of(graph, tokens(256)))
    assert compiled.sha256 == file_sha256(engine)
    assert compiled.engine_bytes == engine.stat().st_size
    assert compiled.weight_bytes >= 3 * 256 * 256 * 2
    assert compiled.activation_bytes >= 2 * 64 * 256 * 2  # what the attention reads has to be somewhere
    assert (compiled.attention_width, compiled.attention_heads) == (256, 4)


def test_a_head_wider_than_any_kernel_compiles_from_its_parts(make_graph: Make, tmp_path: Path):
    graph = make_graph(**attention(1, 384, TensorProto.BFLOAT16))
    assert compile_engine(graph, tmp_path / "engine", "tensorrt-rtx", identity_of(graph, tokens(384))).engine_bytes


def test_what_the_compiler_refuses_is_said_in_its_words(make_graph: Make, tmp_path: Path):
    graph = make_graph(**attention(4, 64, TensorProto.FLOAT))
    with pytest.raises(EngineError, match=r"for sm89: .*dedicated kernel.* Try another precision"):
        compile_engine(graph, tmp_path / "engine", "tensorrt-rtx", identity_of(graph, tokens(256)))


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path):
    graph = tmp_path / "g" / "model.onnx"
    graph.parent.mkdir()
    graph.write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"cannot read g/model\.onnx"):
        compile_engine(graph, tmp_path / "engine", "tensorrt-rtx", identity_of(graph, {}))


def test_a_full_disk_fails_the_build(sum_and_product: Path):
    shapes = {name: ShapeRange.exactly((8, 8)) for name in "ab"}
    with pytest.raises(EngineError, match="No space left"):
        compile_engine(sum_and_product, Path("/dev/full"), "tensorrt-rtx", identity_of(sum_and_product, shapes))


def test_a_target_that_the_library_does_not_know_is_refused_with_those_it_does(sum_and_product: Path, tmp_path: Path):
    shapes = {name: ShapeRange.exactly((8, 8)) for name in "ab"}
    with pytest.raises(BackendUnavailableError, match=r"not compile for sm90; it does for: sm75, .*sm89"):
        compile_engine(
            sum_and_product, tmp_path / "engine", "tensorrt-rtx", identity_of(sum_and_product, shapes, "sm90")
        )
