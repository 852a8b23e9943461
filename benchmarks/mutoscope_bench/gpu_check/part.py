"""What a part of the check is, and which there are, in the order in which they run.

Knows names and limits. Knows nothing of what a part does, or of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

Facts = dict[str, Any]
TENSORRT = ("tensorrt-rtx", "tensorrt")
GPU_BACKENDS = (*TENSORRT, "onnxruntime-cuda")


class NotRunError(Exception):
    """A part cannot run here; the message says why."""


@dataclass(frozen=True)
class Part:
    """`function` is "module:function": it is given a spec and gives facts, or raises what it found."""

    name: str
    purpose: str
    function: str
    limit_s: int
    spec: Mapping[str, Any] = field(default_factory=dict)


def _parts() -> Iterator[Part]:
    device, sessions, videos = (f"{__package__}.{module}" for module in ("device", "sessions", "videos"))
    yield Part("card", "what the driver reports about the GPU", f"{device}:card", 60)
    yield Part("device", "memory, copies, CUDA graphs, errors and threads", f"{device}:device", 120)
    for name in GPU_BACKENDS:
        smallest = "run, capture and replay a minimal graph"
        yield Part(f"session:{name}", smallest, f"{sessions}:session", 300, {"backend": name})
    for name in TENSORRT:
        spec = {"backend": name}
        kept = "compile kernels and reuse them at the next start"
        yield Part(f"kernels:{name}", kept, f"{sessions}:kernels", 300, spec)
        yield Part(f"chain:{name}", "run two graphs in sequence", f"{sessions}:chain", 300, spec)
        yield Part(
            f"attention:{name}", "run one attention layer in bf16 and in FP8", f"{sessions}:attention", 600, spec
        )
    for name in TENSORRT:
        yield Part(
            f"build:{name}", "build the bundle's engines for this GPU", f"{videos}:build", 7200, {"backend": name}
        )
    yield Part("cpu", "make the video on the CPU, as the reference", f"{videos}:on_cpu", 7200)
    for name, graphs in product(GPU_BACKENDS, ("on", "off")):
        purpose = f"make the video with {name}, CUDA graphs {graphs}"
        video = {"backend": name, "cuda_graphs": graphs == "on"}
        yield Part(f"video:{name}:{graphs}", purpose, f"{videos}:on_gpu", 1800, video)


PARTS = {part.name: part for part in _parts()}


def parts_named(names: list[str]) -> list[Part]:
    """The parts of these names, or of those before a colon: "video" means all videos. All parts for no name."""
    return [part for part in PARTS.values() if not names or any(f"{part.name}:".startswith(f"{n}:") for n in names)]
