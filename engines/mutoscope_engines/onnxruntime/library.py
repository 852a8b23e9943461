"""What is true of ONNX Runtime on every device: its types, its sessions, its errors.

Knows the library. Knows nothing of any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import telemetry
from ..errors import BackendUnavailableError, GraphError, MutoscopeError, out_of_memory
from ..session import TensorSpec

ort = telemetry.onnxruntime()

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}

# As the library's arena, C++, CUDA, cuBLAS and cuDNN say it.
OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc", "out of memory", "STATUS_ALLOC_FAILED")


def open_session(graph: Path, settings: Any, providers: list[Any], device: str, without: Sequence[str] = ()) -> Any:
    """An `ort.InferenceSession` on the first of the providers, or what refused it in this project's words.

    Args:
        settings: an `ort.SessionOptions`.
        without: names of optimizers of the library that are not to run.
    """
    try:
        str(graph).encode()
    except UnicodeEncodeError as error:
        raise GraphError(f"ONNX Runtime cannot open {str(graph)!r}, a path that is not UTF-8; rename it") from error
    settings.log_severity_level = 4  # not even errors: they reach the caller as exceptions
    try:
        session = ort.InferenceSession(
            graph, settings, providers=providers, disabled_optimizers=list(without), enable_fallback=0
        )
    except Exception as error:
        raise translated(error, f"loading {graph.parent.name}/{graph.name}", device) from error
    provider = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if session.get_providers()[0] != provider:  # one whose libraries do not load is left out without an error
        raise BackendUnavailableError(
            f"ONNX Runtime could not load its {provider} for the {device}, and would run on the CPU; install the "
            "libraries that it needs with: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    return session


def specs(nodes: Any) -> tuple[TensorSpec, ...]:
    """The inputs or outputs of a session. An axis without a name gets one that no other axis has."""
    return tuple(map(_spec, nodes))


def _spec(node: Any) -> TensorSpec:
    if node.type not in DTYPES:
        raise GraphError(f"{node.name!r} of the graph has the type {node.type}; allowed: {', '.join(DTYPES)}")
    shape = tuple(f"{node.name}.{axis}" if size is None else size for axis, size in enumerate(node.shape))
    return TensorSpec(node.name, DTYPES[node.type], shape)


def translated(error: Exception, doing: str, device: str) -> MutoscopeError:
    """What the library raised while `doing`, as one of this project's errors."""
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
        return out_of_memory(f"{doing} on the {device}", message, on_device=device != "CPU")
    if "graph capture" in message:
        return BackendUnavailableError(f"ONNX Runtime cannot capture this graph: {message}; turn cuda_graphs off")
    if isinstance(error, ort.capi.onnxruntime_pybind11_state.NotImplemented):
        return BackendUnavailableError(
            f"ONNX Runtime cannot run this on the {device}: {message}; try another precision"
        )
    return GraphError(f"ONNX Runtime failed while {doing}: {message}; verify the bundle, or export it again")
