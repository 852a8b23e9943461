"""Says what a measurement ran on. Names no host, user or path. Knows nothing of what was measured."""

import os
import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from mutoscope_engines.cpu_class import cpu_class

from .nvml import gpu_names

PACKAGES = (
    "torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino",
    "openvino-genai", "stable-diffusion-cpp-python", "tensorrt-rtx-cu13", "tensorrt-cu13", "numpy", "av",
)  # fmt: skip


def describe(packages: Sequence[str] = PACKAGES) -> dict[str, object]:
    """Processor and its class, cores this process may use, GPUs, memory in bytes, system, versions of `packages`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cpu_class": cpu_class().value,
        "cores": cores,
        "gpus": gpu_names(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in packages if (version := _version(name)) is not None},
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
