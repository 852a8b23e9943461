"""Mutoscope: a prompt becomes a video, from a bundle, with no PyTorch, no network and no server.

import mutoscope
with mutoscope.Pipeline.load() as pipeline:
    pipeline.generate("a red circle moving right on a black background", seed=7).save("red.mp4")
"""

from __future__ import annotations

from .errors import (
    BackendUnavailableError,
    BundleError,
    CancelledError,
    EngineError,
    EngineMissingError,
    GraphError,
    MutoscopeError,
    NumericalError,
    OutOfMemoryError,
    OutputError,
    ProvenanceError,
    RequestError,
    ShapeError,
    TargetError,
)
from .output.frames import VideoHeader
from .pipeline import FrameStream, Pipeline, StepEvent, Video
from .planning.plan import Plan
from .request import OutputOptions, RuntimeOptions, VideoRequest
from .values.loras import Lora
from .version import __version__

__all__ = [
    "BackendUnavailableError",
    "BundleError",
    "CancelledError",
    "EngineError",
    "EngineMissingError",
    "FrameStream",
    "GraphError",
    "Lora",
    "MutoscopeError",
    "NumericalError",
    "OutOfMemoryError",
    "OutputError",
    "OutputOptions",
    "Pipeline",
    "Plan",
    "ProvenanceError",
    "RequestError",
    "RuntimeOptions",
    "ShapeError",
    "StepEvent",
    "TargetError",
    "Video",
    "VideoHeader",
    "VideoRequest",
    "__version__",
]
