"""What a caller can ask for. Every user parameter is declared here and nowhere else.

The command line makes its flags from these fields, with their help. `None` means: the bundle's default, or what the
plan finds best. Knows no bundle: limits that depend on one are checked by the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from mutoscope_engines.backends import AUTO as ANY_BACKEND
from mutoscope_engines.backends import BACKENDS, JOINED_BY

from .output import AUTO, CODECS
from .solvers.schedule import SCHEDULERS


def parameter(
    help: str, default: Any = None, *, choices: tuple[str, ...] = (), joined_by: str | None = None, unit: str = ""
) -> Any:
    """A field of options, with what its flag on the command line says of it.

    Args:
        joined_by: what stands between several of the choices, where there may be several.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "joined_by": joined_by, "unit": unit})


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """One video. Names and meanings are those of Diffusers' `WanPipeline`."""

    prompt: str = field(metadata={"help": "what the video shows"})
    negative_prompt: str | None = parameter("what it should not show; used with guidance only")
    height: int | None = parameter("height of the video", unit="PIXELS")
    width: int | None = parameter("width of the video", unit="PIXELS")
    num_frames: int | None = parameter("length of the video", unit="FRAMES")
    num_inference_steps: int | None = parameter("denoising steps; more is slower and finer", unit="STEPS")
    guidance_scale: float | None = parameter("how closely to follow the prompt; 1 or less turns guidance off")
    seed: int | None = parameter("the noise to start from; drawn at random when not given")
    fps: str | float | Fraction | None = parameter(
        "frames per second of playback, such as 24, 12.5 or 24000/1001", unit="RATE"
    )
    scheduler: str | None = parameter(
        "the solver; lcm for few-step models that return to noise after each step", choices=tuple(SCHEDULERS)
    )
    flow_shift: float | None = parameter("shift of the noise levels towards noise; higher suits larger videos")
    sigmas: str | Sequence[float] | None = parameter(
        "noise levels, one a step, before the shift, such as 1,0.75,0.5,0.25; when not given, the bundle's, or evenly "
        "spaced where it has none",
        unit="LEVEL,...",
    )
    cache_interval: int = parameter(
        "how many steps it may be from one call of the network to the next, after the first three tenths of the steps; "
        "in between, the velocity is extrapolated",
        1,
        unit="N",
    )
    max_sequence_length: int | None = parameter("text tokens the network sees, padding included", unit="TOKENS")


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How to run, for the life of a pipeline."""

    backend: str = parameter(
        f"what executes the graphs; of several, such as onnxruntime{JOINED_BY}openvino, and with {ANY_BACKEND} of all, "
        "the fastest that run here",
        ANY_BACKEND,
        choices=(ANY_BACKEND, *BACKENDS),
        joined_by=JOINED_BY,
    )
    precision: str | None = parameter("precision of the denoiser, of those in the bundle")
    threads: int | None = parameter(
        "CPU threads, at most one for each core that this process may use; as many when not given", unit="N"
    )
    branches_per_call: int | None = parameter(
        "with guidance, 2: both branches in one call of the network, 1: one call each, with less memory; "
        "2 where they fit when not given",
        unit="1|2",
    )
    memory_limit: str | None = parameter(
        "memory that graphs may take, such as 8GB; on a GPU all that is free when not given. On the CPU, where what a "
        "graph takes while it runs is not known beforehand, it holds weights, inputs and outputs alone",
        unit="SIZE",
    )
    tile: str | None = parameter(
        "decode in tiles of at most this many pixels, such as 480x480: the same frames with less memory, but only once "
        "the last tile begins; when not given, whole where that fits",
        unit="HxW",
    )
    cuda_graphs: str = parameter("whether a GPU replays each step as one captured graph", "on", choices=("on", "off"))


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """How to write the video."""

    codec: str = parameter("how to compress; auto goes by the file's ending", AUTO, choices=CODECS)
