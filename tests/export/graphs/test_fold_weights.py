"""Folding changes where a weight is converted, never what the graph computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from mutoscope_export.graphs.edit import exact
from mutoscope_export.graphs.fold_weights import fold_weights

HEADER = '<ir_version: 10, opset_import: ["" : 23]> folding (float[S, 3] x) => (float[S, 2] y)'
WEIGHT = np.array([[1.5, -2, 3], [4, 5.25, -6]], np.float32)


def parsed(body: str, weight: np.ndarray = WEIGHT) -> ir.Model:
    proto = onnx.parser.parse_model(HEADER + body)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def run(model: ir.Model) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.arange(12, dtype=np.float32).reshape(4, 3)})[0]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("{ t = Transpose<perm=[1, 0]>(w) y = MatMul(x, t) }", ["MatMul"]),
        ("{ t = Cast<to=11>(w) u = Cast<to=1>(t) v = Transpose<perm=[1, 0]>(u) y = MatMul(x, v) }", ["MatMul"]),
        (
            "{ s = Constant<value_ints=[3, 2]>() r = Reshape(w, s) y = MatMul(x, r) }",
            ["MatMul"],
        ),
    ],
)
def test_conversions_of_a_weight_go_and_the_result_stays(body, left):
    model = parsed(body)
    expected = run(model)
    assert fold_weights(model)
    assert [node.op_type for node in model.graph] == left
    assert list(model.graph.initializers) == ["w"]
    np.testing.assert_array_equal(run(model), expected)


def test_a_weight_used_in_two_forms_keeps_both():
    model = parsed("{ t = Transpose<perm=[1, 0]>(w) a = MatMul(x, t) b = MatMul(a, w) y = MatMul(b, t) }")
    expected = run(model)
    assert fold_weights(model)
    assert [node.op_type for node in model.graph] == ["MatMul"] * 3
    assert len(model.graph.initializers) == 2
    np.testing.assert_array_equal(run(model), expected)


def test_a_form_that_several_nodes_make_is_stored_once_under_the_weights_own_name():
    forms = "t = Transpose<perm=[1, 0]>(w) u = Transpose<perm=[1, 0]>(w)"
    model = parsed(f"{{ {forms} a = MatMul(x, t) b = MatMul(x, u) y = Add(a, b) }}")
    expected = run(model)
    assert fold_weights(model)
    assert list(model.graph.initializers) == ["w"]
    np.testing.assert_array_equal(run(model), expected)


@pytest.mark.parametrize(
    "body",
    [
        "{ t = Transpose<perm=[1, 0]>(w) u = Transpose<perm=[0, 1]>(w) a = MatMul(x, u) y = MatMul(a, t) }",
        "{ t = Cast<to=10>(w) u = Cast<to=16>(w) p = Cast<to=1>(t) q = Cast<to=1>(u) a = MatMul(x, p) b = MatMul(x, q)"
        " y = Sub(a, b) }",
        "{ s = Constant<value_ints=[3, 3]>() r = Reshape(w, s) f = Constant<value_ints=[9, 1]>() g = Reshape(w, f)"
        " e = Flatten<axis=1>(g) h = MatMul(x, r) k = ReduceSum(e) y = Mul(h, k) }",
    ],
    ids=["transposed and not", "rounded in two ways", "in two shapes"],
)
def test_other_forms_of_one_weight_stay_apart(body):
    weight = np.array(
        [[1.0009765625, -2, 3], [4, 5.25, -6], [7, 8, 9]], np.float32
    )  # float16 has the first, bfloat16 not
    model = parsed(body, weight)
    expected = run(model)
    assert fold_weights(model)
    np.testing.assert_array_equal(run(model), expected)


def test_a_form_that_is_an_output_stays_where_others_like_it_are_folded():
    model = parsed("{ t = Transpose<perm=[1, 0]>(w) u = Transpose<perm=[1, 0]>(w) y = MatMul(x, t) }")
    output = model.graph[1].outputs[0]
    model.graph.outputs.append(output)
    expected = run(model)
    assert fold_weights(model)
    assert [node.op_type for node in model.graph] == ["Transpose", "MatMul"]
    np.testing.assert_array_equal(run(model), expected)


def test_the_folded_weight_is_computed_only_when_it_is_read():
    class Counted(ir.Tensor):
        reads = 0

        def numpy(self) -> np.ndarray:
            Counted.reads += 1
            return super().numpy()

    model = parsed("{ t = Transpose<perm=[1, 0]>(w) y = MatMul(x, t) }")
    model.graph.initializers["w"].const_value = Counted(WEIGHT, name="w")
    fold_weights(model)
    assert Counted.reads == 0
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), WEIGHT.T)
    assert Counted.reads == 1


def test_a_rounded_weight_knows_what_it_was_in_its_own_layout():
    weight = np.array([[1.0009765625, -2, 3], [4, 5.25, -6]], np.float16)  # the first has no bfloat16
    body = "{ t = Cast<to=16>(w) u = Transpose<perm=[1, 0]>(t) v = Cast<to=1>(u) y = MatMul(x, v) }"
    model = parsed(body, weight)
    assert fold_weights(model)
    folded = model.graph.initializers["w"].const_value
    np.testing.assert_array_equal(folded.numpy()[0], [1, 4])
    assert exact(folded).dtype == ir.DataType.FLOAT16
    np.testing.assert_array_equal(exact(folded).numpy(), weight.T)


def test_a_weight_that_is_an_output_stays_as_it_is():
    model = parsed("{ t = Transpose<perm=[1, 0]>(w) y = MatMul(x, t) }")
    model.graph.outputs.append(model.graph.initializers["w"])
    assert not fold_weights(model)


def test_what_depends_on_an_input_is_left_alone():
    model = parsed("{ a = MatMul(x, w) t = Transpose<perm=[0, 1]>(a) y = Cast<to=1>(t) }", WEIGHT.T.copy())
    assert not fold_weights(model)
    assert [node.op_type for node in model.graph] == ["MatMul", "Transpose", "Cast"]
