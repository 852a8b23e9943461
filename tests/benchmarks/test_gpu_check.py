"""The check of a user's GPU: what it says where there is none, and how it compares."""

import numpy as np
import pytest
from mutoscope_engines.cuda_device import cuda_unavailable_because

from benchmarks import gpu_check


def test_without_a_gpu_it_says_so_and_exits_with_4(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu_check, "cuda_unavailable_because", lambda: "there is no NVIDIA driver; install one")
    assert gpu_check.main(["--output", str(tmp_path / "report.json")]) == 4
    assert "needs an NVIDIA GPU: there is no NVIDIA driver; install one" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_differences_are_in_values_of_a_pixel_and_decibels() -> None:
    reference = np.zeros((1, 2, 2, 3), np.uint8)
    frames = reference.copy()
    frames[0, 0, 0, 0] = 255
    found = gpu_check.differences(frames, reference)
    assert found == {"largest": 255.0, "mean": 21.25, "psnr_db": 10.79}  # 10 log10(12)
    assert gpu_check.differences(reference, frames)["largest"] == 255.0  # bytes do not wrap around
    assert gpu_check.differences(reference, reference)["psnr_db"] is None


def test_steps_that_would_leave_nothing_to_time_are_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main(["--steps", "3"])
    assert "--steps must be more than 3" in capsys.readouterr().err


@pytest.mark.gpu
def test_the_whole_check_runs(tmp_path) -> None:
    if reason := cuda_unavailable_because():
        pytest.skip(reason)
    assert gpu_check.main(["--steps", "6", "--output", str(tmp_path / "report.json")]) == 0
