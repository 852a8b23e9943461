"""A whole video through OpenVINO, against the same in float32 through ONNX Runtime."""

from pathlib import Path

import numpy as np
import pytest
from mutoscope import Pipeline
from mutoscope.bundle import Bundle

pytest.importorskip("openvino")
REQUEST = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 3, "guidance_scale": 3.0, "seed": 5}


def test_bf16_for_cpus_makes_the_video_that_float32_makes(wan_bundle: Path) -> None:
    manifest = Bundle.open(wan_bundle).manifest
    assert manifest.graph("text_encoder", "bf16-cpu").precision == "fp32"
    assert manifest.graph("vae_decoder_next", "bf16-cpu").precision == "bf16-cpu"
    videos = []
    for backend, precision in (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16-cpu")):
        with Pipeline.load(wan_bundle, backend=backend, precision=precision, threads=2) as pipeline:
            frames = pipeline.generate("a red circle", **REQUEST).frames
        videos.append(frames.astype(np.float64))
    exact, float32, bfloat16 = videos
    assert exact.std() > 5
    assert np.abs(float32 - exact).max() <= 1
    assert np.linalg.norm(bfloat16 - exact) < 0.05 * np.linalg.norm(exact - exact.mean())
