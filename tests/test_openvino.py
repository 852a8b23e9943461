"""A whole video through OpenVINO, against the same in float32 through ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mutoscope import Pipeline
from mutoscope.bundle.bundle import Bundle
from mutoscope_engines import openvino_cpu
from mutoscope_engines.system.cpu_class import CpuClass

pytest.importorskip("openvino")
REQUEST = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 3, "guidance_scale": 3.0, "seed": 5}


def test_bf16_for_cpus_makes_the_video_that_float32_makes(wan_bundle: Path) -> None:
    manifest = Bundle.open(wan_bundle).manifest
    assert manifest.graphs_of("text_encoder", "bf16-cpu")[0].precision == "fp32"
    assert manifest.graphs_of("vae_decoder_next", "bf16-cpu")[0].precision == "bf16-cpu"
    videos = []
    for backend, precision in (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16-cpu")):
        with Pipeline.load(wan_bundle, backend=backend, precision=precision, threads=2) as pipeline:
            frames = pipeline.generate("a red circle", **REQUEST).frames
        videos.append(frames.astype(np.float64))
    exact, float32, bfloat16 = videos
    assert exact.std() > 5
    assert np.abs(float32 - exact).max() <= 1
    assert np.linalg.norm(bfloat16 - exact) < 0.05 * np.linalg.norm(exact - exact.mean())


@pytest.mark.parametrize(
    ("cpu_class", "precision", "least", "most"),
    [
        (CpuClass.AVX512_BF16, "bf16-cpu", 0, 0.05),  # what bfloat16 rounds in the decoder; the latents are the same
        (CpuClass.AVX2, "fp32", -1, 0.005),
    ],
)
def test_beside_an_int8_denoiser_the_decoder_runs_where_and_in_what_is_fastest(
    cpu_class: CpuClass, precision: str, least: float, most: float, wan_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_cpu, "cpu_class", lambda: cpu_class)
    videos, plans = [], []
    for backend in ("onnxruntime", ("onnxruntime", "openvino")):
        with Pipeline.load(wan_bundle, backend=backend, precision="int8", threads=2) as pipeline:
            video = pipeline.generate("a red circle", **REQUEST)
        videos.append(video.frames.astype(np.float64))
        plans.append({stage: what.split()[:3] for stage, what in video.plan.placements.stages.items()})
    alone, together = videos
    assert plans[0] == {
        "condition": ["int8", "by", "onnxruntime"],
        "denoise": ["int8", "by", "onnxruntime"],
        "decode": ["fp32", "by", "onnxruntime"],
    }
    assert plans[1] == plans[0] | {"decode": [precision, "by", "openvino"]}
    difference = np.linalg.norm(together - alone) / np.linalg.norm(alone - alone.mean())
    assert least < difference < most


@pytest.mark.parametrize(
    ("cpu_class", "precision", "backend"),
    [
        (CpuClass.AVX512_BF16, "fp32", "onnxruntime"),
        (CpuClass.AVX2, "fp32", "openvino"),
        (CpuClass.ARM, "int8", "onnxruntime"),  # what OpenVINO does there was not measured
    ],
)
def test_the_decoder_runs_where_the_denoiser_does(
    wan_bundle: Path, monkeypatch: pytest.MonkeyPatch, cpu_class: CpuClass, precision: str, backend: str
) -> None:
    monkeypatch.setattr(openvino_cpu, "cpu_class", lambda: cpu_class)
    with Pipeline.load(wan_bundle, backend=("onnxruntime", "openvino"), precision=precision) as pipeline:
        assert all(backend in what for what in pipeline.plan("a red circle").placements.stages.values())


def test_one_pipeline_makes_videos_of_several_sizes(wan_bundle: Path) -> None:
    """Its graphs are compiled for the sizes of one video, and anew for another's."""
    sizes = [{}, {"height": 64}, {"num_frames": 5}, {"guidance_scale": 1.0}, {}]
    with Pipeline.load(wan_bundle, backend="openvino", precision="fp32") as pipeline:
        found = [pipeline.generate("a red circle", **REQUEST | size).frames for size in sizes]
    with Pipeline.load(wan_bundle, backend="onnxruntime", precision="fp32") as pipeline:
        for size, frames in zip(sizes, found, strict=True):
            expected = pipeline.generate("a red circle", **REQUEST | size).frames
            assert np.abs(frames.astype(int) - expected).max() <= 1
