"""Edits of a graph keep it valid, whatever comes before and after what they replace."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from mutoscope_export.graphs.edit import (
    Tape,
    constant,
    converted,
    exact,
    initializer,
    input_of,
    laid_out,
    lazy,
    only_user_of,
    producer_of,
    read_through,
)

HEADER = '<ir_version: 10, opset_import: ["" : 23]> edited (float[N] x) => (float[N] y)'
X = np.array([-2.0, 0.5, 3.0], np.float32)


def parsed(body: str) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(f"{HEADER} {{ {body} }}")))


def run(model: ir.Model) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


def node_of(model: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == op_type)


@pytest.mark.parametrize("body", ["a = Abs(x) y = Neg(a)", "y = Abs(x)"], ids=["inside", "as the graph's output"])
def test_what_replaces_a_node_takes_the_name_shape_and_type_of_its_output(body: str) -> None:
    model = parsed(body)
    node = node_of(model, "Abs")
    output, (name, shape, dtype) = node.outputs[0], (node.outputs[0].name, node.outputs[0].shape, ir.DataType.FLOAT)
    tape = Tape(model.graph, node, f"{name}.root")
    result = tape("Sqrt", tape("Mul", input_of(node), input_of(node)))
    tape.replace(result)
    assert (result.name, result.shape, result.dtype) == (name, shape, dtype)
    assert not output.uses() and "Abs" not in {each.op_type for each in model.graph}
    np.testing.assert_allclose(run(model), -np.abs(X) if "Neg" in body else np.abs(X), rtol=1e-6)


def test_a_chain_is_replaced_as_a_whole() -> None:
    model = parsed("a = Abs(x) b = Neg(a) y = Neg(b)")
    chain = [node_of(model, "Abs"), producer_of(input_of(model.graph[2]), "Neg")]
    tape = Tape(model.graph, chain[1], "b.other")
    tape.replace(tape("Neg", tape("Abs", input_of(chain[0]))), *chain)
    assert len(list(model.graph)) == 3
    np.testing.assert_array_equal(run(model), np.abs(X))


def test_new_values_have_types_and_names_of_their_own() -> None:
    model = parsed("y = Abs(x)")
    node = node_of(model, "Abs")
    tape = Tape(model.graph, node, "y.new")
    cast = tape("Cast", input_of(node), to=ir.DataType.INT64, dtype=ir.DataType.INT64)
    halves = tape.several("Split", cast, dtypes=[cast.dtype] * 2, axis=0, num_outputs=2)
    again = tape("Concat", *halves, axis=0)
    assert [value.dtype for value in (cast, *halves, again)] == [ir.DataType.INT64] * 4
    names = [value.name for each in model.graph for value in each.outputs]
    assert len(set(names)) == len(names) == 5
    assert list(model.graph)[-1] is node


def test_a_copy_keeps_operator_attributes_and_type() -> None:
    model = parsed("a = Cast<to = 10>(x) y = Cast<to = 1>(a)")
    first, second = model.graph
    tape = Tape(model.graph, second, "a.copied")
    copied = tape.copy(first, input_of(first))
    second.replace_input_with(0, copied)
    assert copied.dtype == ir.DataType.FLOAT16
    np.testing.assert_array_equal(run(model), X)


@pytest.mark.parametrize("body", ["a = Abs(x) y = Neg(a)", "y = Abs(x)"], ids=["inside", "as the graph's output"])
def test_all_readers_but_the_first_read_the_result(body: str) -> None:
    model = parsed(body)
    value = node_of(model, "Abs").outputs[0]
    double = ir.node("Add", [value, value])
    read = double.outputs[0]
    read.name, read.shape, read.dtype = "doubled", value.shape, value.dtype
    double.replace_input_with(1, input_of(node_of(model, "Abs")))
    model.graph.insert_after(node_of(model, "Abs"), double)
    read_through(value, double, read)
    assert [use.node for use in value.uses()] == [double]
    np.testing.assert_array_equal(run(model), (np.abs(X) + X) * (-1 if "Neg" in body else 1))


def test_a_name_stands_for_one_constant() -> None:
    graph = parsed("y = Abs(x)").graph
    first = constant(graph, "one", np.array([1], np.int64))
    assert constant(graph, "one", np.array([1], np.int64)) is first
    with pytest.raises(AssertionError):
        constant(graph, "one", np.array([2], np.int64))
    with pytest.raises(AssertionError):
        initializer(graph, "one", ir.Tensor(np.array([1], np.float32)))


def test_only_the_reader_of_a_value_that_is_alone_is_found() -> None:
    model = parsed("a = Abs(x) b = Neg(a) y = Add(b, a)")
    absolute, negative, added = model.graph
    assert only_user_of(negative.outputs[0]) is added
    assert only_user_of(absolute.outputs[0]) is None
    assert producer_of(added.inputs[0], "Neg") is negative
    assert producer_of(added.inputs[0], "Abs") is producer_of(negative.inputs[0], "Neg") is producer_of(None) is None


def test_a_lazy_tensor_is_computed_each_time_it_is_read_and_only_then() -> None:
    calls = []
    source = ir.Tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    tensor = lazy(lambda array: calls.append(1) or array.T, source, ir.DataType.FLOAT, (3, 2))
    assert not calls and list(tensor.shape) == [3, 2]
    np.testing.assert_array_equal(tensor.numpy(), source.numpy().T)
    tensor.numpy()
    assert len(calls) == 2


def test_a_rounded_weight_that_is_laid_out_anew_still_knows_its_exact_values() -> None:
    source = ir.Tensor(np.array([[1.0009765625, 2.0]], np.float32))  # which bfloat16 cannot hold
    moved = laid_out(lambda array: array.T, converted(source, ir.DataType.BFLOAT16), (2, 1))
    assert moved.dtype == ir.DataType.BFLOAT16 and moved.numpy()[0, 0] == 1
    np.testing.assert_array_equal(exact(moved).numpy(), source.numpy().T)
    assert exact(source) is source
