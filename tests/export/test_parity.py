"""A graph that differs from its module is found out; one that does not is let through."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from mutoscope.bundle.manifest import Graph, GraphTensor
from mutoscope_export import parity
from mutoscope_export.errors import ExportError
from mutoscope_export.graphs.network_type import TRACED
from mutoscope_export.graphs.trace import export_graph, trace, write_graph
from mutoscope_export.graphs.weight_files import WeightFolder
from mutoscope_export.parity import Sample, compare, compare_with_own_class, difference, record
from torch import Tensor, nn

GRAPH = Graph(
    role="denoiser",
    precision="fp32",
    file="layer/model.onnx",
    inputs=(GraphTensor(name="x", dtype="float32", shape=("B", 4)),),
    outputs=(
        GraphTensor(name="y", dtype="float32", shape=("B", 3)),
        GraphTensor(name="levels", dtype="uint8", shape=("B", 3)),
    ),
)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        return y, (y.clamp(0, 1) * 100 + 20).to(torch.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    torch.manual_seed(0)
    layer, folder = Layer(), tmp_path_factory.mktemp("parity")
    examples = [{"x": torch.randn(size, 4)} for size in (2, 1, 5)]
    samples = record(layer, examples, ["y", "levels"])
    export_graph(layer, examples[0], {"x": {0: "B"}}, ["y", "levels"], folder)
    return folder / "model.onnx", samples


def changed(sample: Sample, name: str, by: float) -> Sample:
    value = sample.outputs[name]
    return Sample(sample.inputs, sample.outputs | {name: (value + by).astype(value.dtype)})


def test_a_true_graph_passes_and_every_shape_is_reported(exported: tuple[Path, list[Sample]]) -> None:
    report = compare({exported[0]: GRAPH}, exported[1])
    (comparison,) = report["comparisons"]
    assert [sample["input_shapes"]["x"] for sample in comparison["samples"]] == [[2, 4], [1, 4], [5, 4]]
    assert all(sample["outputs"]["y"]["relative_l2"] < 1e-6 for sample in comparison["samples"])


@pytest.mark.parametrize("by", [1e-2, np.nan, np.inf])
def test_a_difference_in_the_last_sample_is_refused(exported: tuple[Path, list[Sample]], by: float) -> None:
    *others, last = exported[1]
    with pytest.raises(ExportError, match=r"layer/model.onnx differs from its network: relative_l2 of y"):
        compare({exported[0]: GRAPH}, [*others, changed(last, "y", by)])


def test_int8_is_given_more_room_than_fp32(exported: tuple[Path, list[Sample]]) -> None:
    sample = exported[1][0]
    off = Sample(sample.inputs, sample.outputs | {"y": sample.outputs["y"] * np.float32(1.01)})
    int8 = Graph(role="denoiser", precision="int8", file=GRAPH.file, inputs=GRAPH.inputs, outputs=GRAPH.outputs)
    compare({exported[0]: int8}, [off])
    with pytest.raises(ExportError):
        compare({exported[0]: GRAPH}, [off])


class OfX(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class OfH(nn.Linear):
    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h)


@pytest.fixture(scope="module")
def in_parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[Path, Graph], list[Sample]]:
    """Two layers, a graph each, and what both together give."""
    torch.manual_seed(0)
    layers, folder = nn.Sequential(OfX(4, 4), OfH(4, 3)), tmp_path_factory.mktemp("parts")
    examples = [{"x": torch.randn(size, 4)} for size in (2, 5)]
    parts = {}
    for number, (layer, given, made) in enumerate(zip(layers, "xh", "hy", strict=True), start=1):
        export_graph(layer, {given: examples[0]["x"]}, {given: {0: "B"}}, [made], folder / str(number))
        inputs, outputs = (
            (GraphTensor(name=name, dtype="float32", shape=("B", size)),)
            for name, size in ((given, 4), (made, layer.out_features))
        )
        file = f"{number}/model.onnx"
        parts[folder / file] = Graph(
            role="denoiser", precision="fp32", file=file, inputs=inputs, outputs=outputs, part=number
        )
    return parts, record(layers, examples, ["y"])


def test_parts_are_compared_together_and_one_is_open_at_a_time(in_parts, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, samples = in_parts
    open_at_once: list[int] = []
    backend, sessions = parity.load_backend("onnxruntime"), set()
    really_open = type(backend).open

    def watched(self, graph, options):
        session = really_open(self, graph, options)
        close = session.close
        sessions.add(session)
        open_at_once.append(len(sessions))
        session.close = lambda: (sessions.discard(session), close())
        return session

    monkeypatch.setattr(type(backend), "open", watched)
    report = compare(parts, samples)
    assert open_at_once == [1, 1] and not sessions
    assert report["files"] == ["1/model.onnx", "2/model.onnx"]
    assert all(
        sample["outputs"]["y"]["relative_l2"] < 1e-6
        for comparison in report["comparisons"]
        for sample in comparison["samples"]
    )
    with pytest.raises(ExportError, match=r"2/model.onnx differs from its network"):
        compare(parts, [changed(samples[0], "y", 1e-2)])


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Graph, list[Sample]]:
    """A layer whose weights bfloat16 holds exactly, its graph in bf16, and what it gives in float32."""
    torch.manual_seed(0)
    layer, folder = Layer().to(torch.bfloat16), tmp_path_factory.mktemp("half")
    examples = [{"x": torch.randn(size, 4)} for size in (2, 1, 5)]
    names = ["y", "levels"]

    class Traced(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.layer, self.dtype = layer, dtype

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            weight, bias = self.layer.linear.weight.to(self.dtype), self.layer.linear.bias.to(self.dtype)
            y = nn.functional.linear(x.to(self.dtype), weight, bias).float()
            return y, (y.clamp(0, 1) * 100 + 20).to(torch.uint8)

    samples = record(Traced(torch.float32), examples, names)
    write_graph(
        trace(Traced(TRACED), examples[0], {"x": {0: "B"}}, names), WeightFolder(folder), network_type="bfloat16"
    )
    graph = msgspec.structs.replace(GRAPH, precision="bf16")
    return folder / "model.onnx", graph, samples


def test_a_half_graph_of_half_weights_must_be_exact_where_nothing_is_rounded(half) -> None:
    file, graph, samples = half
    exact, rounded = compare({file: graph}, samples, "bfloat16")["comparisons"]
    assert all(sample["outputs"]["y"]["relative_l2"] < 1e-6 for sample in exact["samples"])
    assert all(1e-4 < sample["outputs"]["y"]["relative_l2"] < 1e-2 for sample in rounded["samples"])
    assert [path.name for path in file.parent.iterdir() if path.suffix == ".onnx"] == ["model.onnx"]
    off = Sample(samples[0].inputs, samples[0].outputs | {"y": samples[0].outputs["y"] * np.float32(1.001)})
    with pytest.raises(ExportError, match="allowed in bf16, run in float32"):
        compare({file: graph}, [off], "bfloat16")
    compare({file: graph}, [off], "float32")


def test_pixels_may_be_one_level_off_and_not_two(exported: tuple[Path, list[Sample]]) -> None:
    compare({exported[0]: GRAPH}, [changed(exported[1][0], "levels", 1)])
    with pytest.raises(ExportError, match="max_abs of levels is 2"):
        compare({exported[0]: GRAPH}, [changed(exported[1][0], "levels", 2)])


@pytest.mark.parametrize(
    ("dtype", "allowed", "refused"),
    [(torch.float32, 5e-5, 2e-4), (torch.float16, 0.9, 1.1), (torch.bfloat16, 0.9, 1.1)],
)
def test_a_module_may_differ_from_its_own_class_by_what_the_type_of_the_weights_explains(
    dtype: torch.dtype, allowed: float, refused: float
) -> None:
    layer = nn.Linear(4, 3).to(dtype)
    value = torch.linspace(-1, 1, 12)
    report = compare_with_own_class("transformer", layer, value * (1 + allowed), value)
    assert report["against"] == "checkpoint's own classes"
    assert report["relative_l2"] == pytest.approx(allowed, rel=0.05)
    with pytest.raises(ExportError, match=r"the exported transformer differs from Linear: relative_l2"):
        compare_with_own_class("transformer", layer, value * (1 + refused), value)


def test_a_graph_with_other_outputs_than_declared_is_refused(exported: tuple[Path, list[Sample]]) -> None:
    reversed_outputs = GRAPH.outputs[::-1]
    declared = Graph(role="denoiser", precision="fp32", file=GRAPH.file, inputs=GRAPH.inputs, outputs=reversed_outputs)
    with pytest.raises(ExportError, match="its family declares"):
        compare({exported[0]: declared}, exported[1])


def test_differences_are_those_of_the_formula() -> None:
    found = difference(np.array([3.0, 4.5], np.float32), np.array([3.0, 4.0], np.float32))
    assert found == {"max_abs": 0.5, "relative_l2": 0.1}
    with pytest.raises(ExportError, match=r"gives float32 \(2,\), and its network float32 \(3,\)"):
        difference(np.zeros(2, np.float32), np.zeros(3, np.float32))
