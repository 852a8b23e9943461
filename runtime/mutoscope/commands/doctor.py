"""`mutoscope doctor`: what this machine and this installation can do, for a bug report. Finds faults, never fails."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from mutoscope_engines import telemetry
from mutoscope_engines.backends import BACKENDS, load_backend
from mutoscope_engines.cache.engine_cache import EngineCache
from mutoscope_engines.system.cpu_class import cpu_class
from mutoscope_engines.system.machine import cpu_flags, cpu_model, memory_bytes, usable_cores
from mutoscope_engines.tensorrt.library import LIBRARIES as TENSORRT
from mutoscope_engines.tensorrt.library import TensorRT

from ..builtin import bundle_path
from ..bundle.bundle import Bundle
from ..errors import MutoscopeError
from ..output.encoders import ENCODERS, is_available
from ..terminal import format_facts, tell
from ..version import __version__
from .arguments import Parser, add_bundle

LIBRARIES = ("numpy", "onnxruntime", "tokenizers", "av", "ftfy", "msgspec")
# What decides the speed of int8, bfloat16 and float32, on x86 and Arm, in the words of `cpu_flags`.
CPU_FLAGS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16", "sve"),
)


def main(argv: Sequence[str]) -> int:
    """`mutoscope doctor`. Returns the exit code."""
    parser = Parser("doctor", "Reports what this machine and this installation support.")
    add_bundle(parser)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    arguments = parser.parse(argv)
    facts = {
        "mutoscope": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "memory": _memory(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "backends": {name: _backend(name) for name in BACKENDS},
        "telemetry": telemetry.states(),  # of what the backends imported
        "compilers": {name: _compiler(library) for name, library in TENSORRT.items()},
        "engines": _engines(),
        "encoders": _encoders(),
        "bundle": _bundle(arguments.bundle),
    }
    tell(json.dumps(facts) if arguments.json else format_facts(facts))
    return 0


def _cpu() -> dict[str, Any]:
    return {
        "model": cpu_model(),
        "usable cores": usable_cores(),
        "cores": os.cpu_count(),
        "class": cpu_class().value,
        "flags": [flag for flag in CPU_FLAGS if flag in cpu_flags()],
    }


def _memory() -> dict[str, int]:
    memory = psutil.virtual_memory()
    return {"total_bytes": memory.total, "usable_bytes": memory_bytes(), "available_bytes": memory.available}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def _backend(name: str) -> str:
    try:
        backend = load_backend(name)
        return backend.unavailable_because() or f"{backend.version()}, ready"
    except (ImportError, OSError) as error:  # its library is missing or does not load
        return f"not usable: {error}"


def _compiler(library: TensorRT) -> str:
    try:
        return f"{library.version()}, installed"
    except MutoscopeError as error:
        return str(error)


def _engines() -> dict[str, Any]:
    """What the cache holds; of other installations' engines, only the size."""
    try:
        cache = EngineCache()
        return {
            "folder": str(cache.folder),
            "engines": len(cache.catalogue().records),
            "size_bytes": cache.size_bytes(),
            "limit_bytes": cache.limit_bytes,
        }
    except (MutoscopeError, OSError) as error:
        return {"state": f"not usable: {error}"}


def _encoders() -> dict[str, str]:
    return {
        codec: f"{encoder.name}, {'ready' if is_available(encoder.name) else 'not available'}"
        for codec, encoder in ENCODERS.items()
    }


def _bundle(path: Path | None) -> dict[str, str]:
    try:
        bundle = Bundle.open(path or bundle_path())
    except (MutoscopeError, OSError) as error:
        return {"state": f"not usable: {error}"}
    return {"state": "verified", "path": str(bundle.root), "family": bundle.manifest.family, "sha256": bundle.sha256}
