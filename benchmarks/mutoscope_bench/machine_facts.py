"""Says what a measurement ran on. Names no host, user or path. Knows nothing of what was measured."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata

from mutoscope_engines.system.cpu_class import cpu_class
from mutoscope_engines.system.machine import cpu_model, memory_bytes, usable_cores

from .nvml import gpu_names

PACKAGES = (
    "torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino",
    "openvino-genai", "stable-diffusion-cpp-python", "tensorrt-rtx-cu13", "tensorrt-cu13", "numpy", "av",
)  # fmt: skip


def describe(packages: Sequence[str] = PACKAGES) -> dict[str, object]:
    """Processor and its class, cores and bytes of memory this process may use, GPUs, system, versions of `packages`."""
    return {
        "cpu": cpu_model(),
        "cpu_class": cpu_class().value,
        "cores": usable_cores(),
        "gpus": gpu_names(),
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in packages if (version := _version(name)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
