"""What NVIDIA's libraries are called, by system. Sources: the CUDA driver's and NVML's documentation."""

from __future__ import annotations

import ctypes
import sys
from importlib.machinery import ModuleSpec

import pytest
from mutoscope_bench import nvml
from mutoscope_engines.device import cuda as cuda_device


@pytest.mark.parametrize(
    ("platform", "driver", "management"),
    [("linux", "libcuda.so.1", "libnvidia-ml.so.1"), ("win32", "nvcuda.dll", "nvml.dll")],
)
def test_each_system_has_its_own_names(
    monkeypatch: pytest.MonkeyPatch, platform: str, driver: str, management: str
) -> None:
    asked = []

    def missing(name: str) -> None:
        asked.append(name)
        raise OSError(name)

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(cuda_device, "find_spec", lambda name: ModuleSpec(name, None))
    reason = cuda_device.cuda_unavailable_because()
    assert reason is not None and "no NVIDIA driver" in reason
    assert nvml.open_library.__wrapped__() is None
    assert asked == [driver, management]
