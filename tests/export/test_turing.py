"""A float16 bundle compiles for RTX 20, which has no bfloat16 and no float32 matrix products."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from mutoscope.engine_shapes import LargestVideo, profile_of
from mutoscope_engines.engine_identity import content_of
from mutoscope_engines.targets import find_target
from mutoscope_engines.tensorrt_builder import compile_engine
from mutoscope_engines.tensorrt_library import LIBRARIES
from mutoscope_export.export import export_checkpoint

pytestmark = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


def test_every_graph_of_a_float16_bundle_compiles_for_rtx20(wan_checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_checkpoint(wan_checkpoint, tmp_path / "bundle", precisions=("fp16",))  # compares each with torch
    video = LargestVideo(height=48, width=64, num_frames=9, branches=2)
    for graph in bundle.manifest.graphs:
        file = bundle.path(graph.file)
        profile = profile_of(graph, video, bundle.manifest)
        identity = LIBRARIES["tensorrt-rtx"].identity(content_of(file), "fp16", [find_target("rtx20")], profile)
        assert compile_engine(file, tmp_path / graph.role, "tensorrt-rtx", identity).engine_bytes, graph.role
