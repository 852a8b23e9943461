"""Float16 graphs compile for RTX 20, which has no bfloat16 and no float32 matrix products, and say what torch says."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from mutoscope.bundle.contract import DECODE, ROLES
from mutoscope_engines.cache.identity import ShapeRange, content_of
from mutoscope_engines.symbols import sized
from mutoscope_engines.targets import find_target
from mutoscope_engines.tensorrt.builder import compile_engine
from mutoscope_engines.tensorrt.library import LIBRARIES
from mutoscope_export.families.wan.graph_sources import text_to_video
from mutoscope_export.graphs.network_type import TRACED
from mutoscope_export.graphs.trace import GRAPH_FILE, NETWORK, dynamic_shapes, trace, write_graph
from mutoscope_export.graphs.weight_files import WeightFolder
from mutoscope_export.passes.in_float32 import InFloat32
from transformers import UMT5EncoderModel

NETWORKS = {
    "text_encoder": ("text_encoder", UMT5EncoderModel),
    "denoiser": ("transformer", WanTransformer3DModel),
    **{role: ("vae", AutoencoderKLWan) for role in ROLES if ROLES[role].stage == DECODE},
}
SMALLEST = {"B": 1, "L": 1, "F": 1, "h": 2, "w": 2, "K": 1}
LARGEST = {"B": 2, "L": 16, "F": 3, "h": 6, "w": 8, "K": 4}


def written(role: str, checkpoint: Path, folder: Path) -> tuple[Any, Any]:
    """The source of a graph and its network, whose weights are exact in float16; the graph lies in the folder."""
    component, network_class = NETWORKS[role]
    network = network_class.from_pretrained(checkpoint / component).eval()
    for parameter in network.parameters():
        parameter.data = parameter.data.half().float()
    (source,) = (source for source in text_to_video(["fp16"]) if source.role == role)
    inputs, example = source.inputs(network), source.examples(network)[0]
    example = {name: example[name].to(TRACED) if dtype == NETWORK else example[name] for name, dtype, _ in inputs}
    with torch.no_grad():
        names = [name for name, _, _ in source.outputs(network)]
        traced = trace(source.module(network, TRACED), example, dynamic_shapes(inputs), names)
    (form,) = source.forms
    write_graph(traced, WeightFolder(folder), network_type=form.network_type, passes=form.passes)
    return source, network


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("role", NETWORKS)
def test_every_graph_compiles_for_rtx20(role: str, wan_checkpoint: Path, tmp_path: Path) -> None:
    source, network = written(role, wan_checkpoint, tmp_path)
    graph = tmp_path / GRAPH_FILE
    profile = {
        name: ShapeRange(sized(shape, SMALLEST), sized(shape, LARGEST), sized(shape, LARGEST))
        for name, _, shape in source.inputs(network)
    }
    identity = LIBRARIES["tensorrt-rtx"].identity(
        content_of(graph, graph.with_name(f"{graph.name}.data")), "fp16", [find_target("rtx20")], profile
    )
    assert compile_engine(graph, tmp_path / "engine", "tensorrt-rtx", identity).engine_bytes


def test_the_denoiser_for_rtx20_gives_what_torch_gives(wan_checkpoint: Path, tmp_path: Path) -> None:
    source, network = written("denoiser", wan_checkpoint, tmp_path)
    model = ir.load(tmp_path / GRAPH_FILE)
    InFloat32(rounded=False)(model)
    ir.save(model, tmp_path / "wide.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "wide.onnx", providers=["CPUExecutionProvider"])
    for example in source.examples(network):
        with torch.no_grad():
            expected, _ = source.module(network, torch.float32)(**example)
        given, _ = session.run(None, {name: value.numpy() for name, value in example.items()})
        assert np.linalg.norm(given - expected.numpy()) < 1e-5 * np.linalg.norm(expected.numpy())
