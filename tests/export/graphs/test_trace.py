"""What every exported graph must be, shown on a module of one layer."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from mutoscope_export.graphs.trace import export_graph
from torch import Tensor, nn


class Layer(nn.Module):
    """A bfloat16 layer that computes in float32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(48, 32).to(torch.bfloat16)

    def forward(self, x: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        y = nn.functional.linear(x, self.inner.weight.float(), self.inner.bias.float()) * gain
        return y, y.abs().sum()


def write(folder: Path, **options: object) -> Path:
    inputs = {"x": torch.ones(3, 48), "gain": torch.ones(1)}
    export_graph(Layer(), inputs, {"x": {0: "S"}}, ["y", "total"], folder, **options)
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("graph") / "made" / "here")


def test_graph_computes_what_the_module_computes_at_another_size(written):
    x, gain = torch.randn(7, 48), torch.tensor([3.0])
    session = onnxruntime.InferenceSession(str(written), providers=["CPUExecutionProvider"])
    y, total = session.run(["y", "total"], {"x": x.numpy(), "gain": gain.numpy()})
    expected, expected_total = Layer()(x, gain)
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(total, expected_total.detach().numpy(), rtol=1e-5)


def test_versions_and_names_are_fixed(written):
    model = onnx.load(written, load_external_data=False)
    assert model.ir_version == 10
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 23)]
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["x", "gain", "y", "total"]
    for value in (model.graph.input[0], model.graph.output[0]):
        assert value.type.tensor_type.shape.dim[0].dim_param == "S"


def test_weights_lie_beside_the_graph_converted_and_small_tensors_within_it(written):
    tensors = {tensor.name: tensor for tensor in onnx.load(written, load_external_data=False).graph.initializer}
    weight, bias = tensors["inner.weight"], tensors["inner.bias"]
    assert weight.data_type == bias.data_type == onnx.TensorProto.FLOAT
    assert weight.data_location == onnx.TensorProto.EXTERNAL
    assert bias.data_location == onnx.TensorProto.DEFAULT
    assert sorted(path.name for path in written.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert (written.parent / "model.onnx.data").stat().st_size == 4 * 48 * 32


def test_nothing_of_the_exporting_machine_is_in_the_file(written):
    content = written.read_bytes()
    for trace in (Path(torch.__file__).parent, Path(__file__).parent, Path.home()):
        assert str(trace).encode() not in content
    assert b".py" not in content and b"stack_trace" not in content


def test_two_exports_give_the_same_bytes(written, tmp_path):
    again = write(tmp_path)
    for path in written.parent.iterdir():
        assert path.read_bytes() == (again.parent / path.name).read_bytes()


def test_passes_run_in_order_on_the_finished_graph(tmp_path):
    seen: list[list[str]] = []

    def look(model: ir.Model) -> bool:
        seen.append([node.op_type for node in model.graph])
        return False

    def add_a_step(model: ir.Model) -> bool:
        last = model.graph.outputs[0]
        doubled = ir.node("Add", [last, last])
        model.graph.append(doubled)
        doubled.outputs[0].name, last.name = "y", "half"
        doubled.outputs[0].shape, doubled.outputs[0].dtype = last.shape, last.dtype
        model.graph.outputs[0] = doubled.outputs[0]
        return True

    graph = write(tmp_path, passes=[look, add_a_step, look])
    assert "Transpose" not in seen[0] and "Cast" not in seen[0]
    assert seen[1] == [*seen[0], "Add"]
    assert [node.op_type for node in onnx.load(graph).graph.node] == seen[1]


def test_export_says_nothing(tmp_path, capfd, recwarn, caplog):
    write(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list and not [record for record in caplog.records if record.levelno >= logging.INFO]
