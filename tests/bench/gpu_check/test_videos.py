"""The bundle's video on a pretended GPU, compared with the CPU's."""

from __future__ import annotations

import numpy as np
import pytest
from mutoscope_bench.gpu_check import sessions, videos
from mutoscope_engines.testing import only_backends

from tests.engines.pretended import TensorRtOnHost

SIZE = {"height": 32, "width": 32, "num_frames": 5}


def test_the_video_of_a_gpu_is_timed_and_compared_with_that_of_the_cpu(tmp_path, monkeypatch) -> None:
    spec = {"folder": str(tmp_path), "bundle": None, "precision": "fp32", "tile": None, "steps": 5, "request": SIZE}
    on_cpu = videos.on_cpu(spec)
    assert on_cpu["plan"]["precision"] == "fp32" and on_cpu["free_bytes"] == {}
    backend = TensorRtOnHost()
    monkeypatch.setattr(videos, "refuse_unavailable", lambda name: None)
    monkeypatch.setattr(videos, "CudaDevice", lambda: backend.on_host)
    with only_backends(backend):
        facts = videos.on_gpu(spec | {"backend": "tensorrt-rtx", "cuda_graphs": True})
    assert facts["against_cpu"]["largest"] <= 1
    for video in ("first", "second"):
        assert len(facts[video]["first_steps_s"]) == 3 and facts[video]["step_median_s"] > 0
    stages = [f"{video}, before {stage}" for video in ("first", "second") for stage in facts["first"]["stages_s"]]
    assert set(facts["free_bytes"]) == {*stages, "before", "after the first", "after the second", "closed"}


def test_engines_are_built_for_the_gpu_and_the_size_of_the_video(tmp_path, monkeypatch) -> None:
    given: list[list[str]] = []

    def build(command: list[str]) -> int:
        given.append(command)
        print('{"engines": []}')
        return 0

    monkeypatch.setattr(videos, "build_command", build)
    monkeypatch.setattr(videos, "compute_capability", lambda: 75)
    monkeypatch.setattr(sessions, "compute_capability", lambda: 75)
    monkeypatch.setattr(videos, "refuse_unavailable", lambda name: None)
    spec = {"backend": "tensorrt-rtx", "bundle": None, "precision": None, "tile": (176, 176), "request": SIZE}
    assert videos.build(spec) == {"engines": []}
    assert " ".join(given[0]) == (
        "--json --backend tensorrt-rtx --target sm75 --precision fp16 --shapes 32x32x5 --tile 176x176"
    )


def test_differences_are_in_values_of_a_pixel_and_decibels() -> None:
    reference = np.zeros((1, 2, 2, 3), np.uint8)
    frames = reference.copy()
    frames[0, 0, 0, 0] = 255
    reference[0, 1, 1, 0] = 51
    found = videos.differences(frames, reference)
    # (255^2 + 51^2) / 12 is the mean square, and 10 log10(12 / 1.04) = 10.62
    assert found == {"largest": 255, "mean": 25.5, "relative_error": 5.099, "psnr_db": 10.62}
    assert videos.differences(reference, frames)["largest"] == 255  # bytes do not wrap around
    assert videos.differences(reference, reference)["psnr_db"] is None


def test_a_video_of_another_size_is_told() -> None:
    with pytest.raises(ValueError, match=r"the video is \(2, 2, 2, 3\), that of the CPU \(1, 2, 2, 3\)"):
        videos.differences(np.zeros((2, 2, 2, 3), np.uint8), np.zeros((1, 2, 2, 3), np.uint8))
