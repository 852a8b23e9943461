"""Reading an ONNX file without a library, against what the library `onnx` wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from mutoscope_engines.errors import GraphError
from mutoscope_engines.onnx_file import ONNX_TYPES, read_onnx_file
from mutoscope_engines.session import TensorSpec
from onnx import TensorProto, helper


@pytest.mark.parametrize("dtype", ONNX_TYPES)
def test_inputs_and_outputs_have_the_types_and_symbols_that_the_graph_declares(dtype: str, make_graph) -> None:
    number = getattr(TensorProto, {"float32": "FLOAT"}.get(dtype, dtype.upper()))
    cast = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    graph = make_graph([cast], [("x", number, ["n", 3, "2*h", None])], [("y", TensorProto.FLOAT, ["n", 3, 0, None])])
    read = read_onnx_file(graph)
    assert read.inputs == (TensorSpec("x", dtype, ("n", 3, "2*h", "x.3")),)
    assert read.outputs == (TensorSpec("y", "float32", ("n", 3, 0, "y.3")),)
    assert read.locations == frozenset()


def external(name: str, location: str) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def places() -> dict[str, onnx.ModelProto]:
    """Models with one tensor whose data is elsewhere, in every place where ONNX lets a tensor be."""
    tensor = external("w", "../elsewhere")
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    inner = helper.make_graph([constant], "inner", [], [])
    branch = helper.make_node("If", ["on"], ["y"], then_branch=inner, else_branch=helper.make_graph([], "g", [], []))
    sparse = onnx.SparseTensorProto(values=tensor, dims=[4])
    function = helper.make_function("d", "f", [], ["c"], [constant], [helper.make_opsetid("", 23)])

    def model(graph: onnx.GraphProto, **parts) -> onnx.ModelProto:
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], **parts)

    return {
        "initializer": model(helper.make_graph([], "g", [], [], [tensor])),
        "constant": model(helper.make_graph([constant], "g", [], [])),
        "graph within": model(helper.make_graph([branch], "g", [], [])),
        "sparse": model(helper.make_graph([], "g", [], [], sparse_initializer=[sparse])),
        "function": model(helper.make_graph([], "g", [], []), functions=[function]),
    }


@pytest.mark.parametrize("place", places())
def test_weights_outside_the_folder_are_found_wherever_a_tensor_can_be(place: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(places()[place].SerializeToString())
    with pytest.raises(GraphError, match=r"weights outside its folder, in '\.\./elsewhere'"):
        read_onnx_file(tmp_path / "model.onnx")


def test_weights_in_the_file_and_beside_it_are_passed_by(make_graph) -> None:
    inline = onnx.numpy_helper.from_array(np.ones(1000, np.float32), "inline")
    graph = make_graph([], [], [], [inline, external("w", "model.onnx.data")])
    assert read_onnx_file(graph).locations == {"model.onnx.data"}


def test_a_file_that_ends_too_early_is_refused_at_any_length(make_graph) -> None:
    graph = make_graph([], [("x", TensorProto.FLOAT, ["n"])], [], [external("w", "model.onnx.data")])
    whole = graph.read_bytes()
    inputs = read_onnx_file(graph).inputs
    for length in range(len(whole)):
        graph.write_bytes(whole[:length])
        try:  # between two fields of the model, what is there may be a graph
            assert read_onnx_file(graph).inputs == inputs
        except GraphError as error:
            assert "graph/model.onnx is not an ONNX graph" in str(error)
