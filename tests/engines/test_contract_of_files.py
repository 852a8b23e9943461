"""What every backend promises of the files that it opens: which it refuses, and that it lets go of them."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import pytest
from mutoscope_engines.errors import GraphError
from mutoscope_engines.session import Backend, SessionOptions
from onnx import TensorProto, helper

FLOAT = TensorProto.FLOAT
OPTIONS = SessionOptions(threads=1)


def test_closing_frees_the_weights(reader: Backend, make_graph) -> None:
    size = 48 * 2**20
    weights = helper.make_tensor("weights", FLOAT, [size // 4], np.ones(size // 4, np.float32).tobytes(), raw=True)
    graph = make_graph(
        [helper.make_node("Add", ["x", "weights"], ["y"])], [("x", FLOAT, [1])], [("y", FLOAT, [size // 4])], [weights]
    )
    del weights
    reader.open(graph, OPTIONS).close()
    before = resident_bytes()
    for _ in range(4):
        reader.open(graph, OPTIONS).close()
    assert resident_bytes() - before < 2 * size


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("content", [b"", b"this is not ONNX", None], ids=["empty", "text", "missing"])
def test_what_is_not_a_graph_is_refused_by_its_name(reader: Backend, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "denoiser" / "model.onnx"
    path.parent.mkdir()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GraphError, match=r"denoiser/model\.onnx.*verify the bundle") as refusal:
        reader.open(path, OPTIONS)
    assert refusal.value.exit_code == 3


def test_a_graph_with_an_unknown_operator_is_refused(reader: Backend, make_graph) -> None:
    graph = make_graph([helper.make_node("Divine", ["x"], ["y"])], [("x", FLOAT, [1])], [("y", FLOAT, [1])])
    with pytest.raises(GraphError, match="Divine"):
        reader.open(graph, OPTIONS)


@pytest.mark.parametrize("where", ["../secret", "absolute", "inner/../../secret", "link", "linked_folder/secret"])
def test_weights_outside_the_folder_of_a_graph_are_refused(
    reader: Backend, make_graph, tmp_path: Path, where: str
) -> None:
    graph = graph_with_external_weights(make_graph, str(tmp_path / "secret") if where == "absolute" else where)
    (tmp_path / "secret").write_bytes(np.ones(4, np.float32).tobytes())
    (graph.parent / "inner").mkdir()
    (graph.parent / "link").symlink_to("../secret")
    (graph.parent / "linked_folder").symlink_to("..")
    with pytest.raises(GraphError, match=r"graph/model\.onnx"):
        reader.open(graph, OPTIONS)


def test_weights_beside_a_graph_are_read(reader: Backend, make_graph) -> None:
    graph = graph_with_external_weights(make_graph, "model.onnx.data")
    (graph.parent / "model.onnx.data").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    with reader.open(graph, OPTIONS) as session:
        assert session.run({"x": np.ones(4, np.float32)})["y"].numpy().tolist() == [1, 2, 3, 4]


def graph_with_external_weights(make_graph, location: str) -> Path:
    weights = onnx.TensorProto(name="weights", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    weights.external_data.add(key="length", value="16")
    path: Path = make_graph(
        [helper.make_node("Add", ["x", "weights"], ["y"])], [("x", FLOAT, [4])], [("y", FLOAT, [4])], [weights]
    )
    return path
