"""Which graphs are open, and when."""

from pathlib import Path
from typing import Any

import mutoscope
import pytest
from mutoscope_engines.onnxruntime.cpu import OnnxRuntimeCpu

REQUEST = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1, "seed": 0}


def test_after_a_preload_a_video_opens_no_graph(wan_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    open_graph = OnnxRuntimeCpu.open

    def watched(self: OnnxRuntimeCpu, graph: Path, *rest: Any) -> Any:
        opened.append(graph.parent.name)
        return open_graph(self, graph, *rest)

    monkeypatch.setattr(OnnxRuntimeCpu, "open", watched)
    with mutoscope.Pipeline.load(wan_bundle, backend="onnxruntime") as pipeline:
        plan = pipeline.preload("a red circle", **REQUEST)
        preloaded = list(opened)
        pipeline.generate("a red circle", **REQUEST)
    assert plan.keep_loaded
    assert {"text_encoder", "denoiser"} < set(preloaded)
    assert opened == preloaded
