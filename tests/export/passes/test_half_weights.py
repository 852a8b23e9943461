import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from mutoscope_export.graph import export_graph
from mutoscope_export.passes.half_weights import half_weights


@pytest.fixture(params=[torch.float16, torch.bfloat16, torch.float32])
def layer(request):
    torch.manual_seed(0)
    module = torch.nn.Linear(64, 48)
    with torch.no_grad():
        module.weight[0, 0] = 2.0**20 if request.param is torch.bfloat16 else 0.5  # beyond float16
    return module.to(request.param).float(), request.param


def export(layer, folder, passes):
    export_graph(layer, {"input": torch.randn(3, 64)}, {"input": {0: "N"}}, ["output"], folder, passes=passes)
    return folder / "model.onnx"


def test_a_graph_with_half_weights_computes_exactly_the_same(layer, tmp_path):
    module, _ = layer
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    full, half = (
        ort.InferenceSession(export(module, tmp_path / name, passes)).run(None, {"input": x})[0]
        for name, passes in (("full", ()), ("half", (half_weights,)))
    )
    np.testing.assert_array_equal(full, half)


def test_only_weights_that_are_exact_in_half_precision_are_stored_so(layer, tmp_path):
    module, dtype = layer
    model = onnx.load(export(module, tmp_path, (half_weights,)))
    stored = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2}
    expected = {
        torch.float16: onnx.TensorProto.FLOAT16,
        torch.bfloat16: onnx.TensorProto.BFLOAT16,
        torch.float32: onnx.TensorProto.FLOAT,
    }
    assert stored == {expected[dtype]}


def test_nothing_changes_without_such_weights(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 48)
    export(model, tmp_path, (lambda graph: not half_weights(graph) or pytest.fail("changed"),))
