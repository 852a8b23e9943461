"""What a caller can ask for. Every parameter of running is declared here and nowhere else.

The command line makes its flags from these fields, and JSON its names. `None` means: the bundle's default, or what the
plan finds best. Knows no bundle: limits that depend on one are checked by the plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar, TypedDict

from mutoscope_engines.backends import AUTO as ANY_BACKEND
from mutoscope_engines.backends import BACKENDS, JOINED_BY
from mutoscope_engines.session import Backend

from .codec import decode, encode, refuse_unknown
from .errors import RequestError
from .output import AUTO, CODECS
from .solvers.solvers import SCHEDULERS
from .values.parameters import BYTES, HEIGHT_WIDTH, LEVELS, ON_OFF, RATE, about, names, parameter

BACKEND_NAMES = names(JOINED_BY, ("onnxruntime", "openvino"))


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """One video. Names and meanings are those of Diffusers' `WanPipeline`."""

    TITLE: ClassVar[str] = "the video"

    prompt: str = field(metadata=about("what the video shows"))
    negative_prompt: str | None = parameter("what it should not show; used with guidance only", unit="TEXT")
    height: int | None = parameter("height of the video", unit="PIXELS")
    width: int | None = parameter("width of the video", unit="PIXELS")
    num_frames: int | None = parameter("length of the video", unit="FRAMES")
    num_inference_steps: int | None = parameter("denoising steps; more is slower and finer", unit="STEPS")
    guidance_scale: float | None = parameter(
        "how closely to follow the prompt; 1 or less turns guidance off", unit="SCALE"
    )
    seed: int | None = parameter("the noise to start from; drawn at random when not given", unit="N")
    fps: Fraction | int | float | None = parameter(
        "frames per second of playback, such as 24, 12.5 or 24000/1001", unit="RATE", form=RATE
    )
    scheduler: str | None = parameter(
        "the solver; lcm for few-step models that return to noise after each step", choices=tuple(SCHEDULERS)
    )
    flow_shift: float | None = parameter(
        "shift of the noise levels towards noise; higher suits larger videos", unit="SHIFT"
    )
    sigmas: Sequence[float] | None = parameter(
        "noise levels, one a step, before the shift, such as 1,0.75,0.5,0.25; when not given, the bundle's, or evenly "
        "spaced where it has none",
        unit="LEVEL,...",
        form=LEVELS,
    )
    cache_interval: int = parameter(
        "run the network at least every N steps once 30 % of the steps are done, and extrapolate in between; "
        "1: at every step",
        1,
        unit="N",
    )
    max_sequence_length: int | None = parameter("text tokens the network sees, padding included", unit="TOKENS")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VideoRequest:
        """The request that JSON says. Numbers are numbers there, `sigmas` a list; `fps` may be text: "24000/1001".

        Raises:
            RequestError: a name that there is not, a value of another type, no prompt; names all of them at once.
        """
        return decode(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """What was given, as JSON has it; `from_dict` makes the same request of it."""
        return encode(self)


class RequestFields(TypedDict, total=False):
    """The fields of `VideoRequest`, as keywords."""

    prompt: str
    negative_prompt: str | None
    height: int | None
    width: int | None
    num_frames: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    seed: int | None
    fps: Fraction | int | float | None
    scheduler: str | None
    flow_shift: float | None
    sigmas: Sequence[float] | None
    cache_interval: int
    max_sequence_length: int | None


def make_request(request: VideoRequest | str | None, given: RequestFields) -> VideoRequest:
    """One request from a request or a prompt, and keywords, which replace its fields.

    Raises:
        RequestError: there is no such parameter, no prompt, or two.
    """
    refuse_unknown(VideoRequest, given)
    if isinstance(request, VideoRequest):
        return replace(request, **given)
    if request is not None and "prompt" in given:
        raise RequestError("the prompt is given twice; give it first, or by name")
    if request is None and "prompt" not in given:
        raise RequestError('the prompt is missing; say what the video shows, for example "a red circle"')
    return VideoRequest(**({} if request is None else {"prompt": request}), **given)


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How to run, for the life of a pipeline."""

    TITLE: ClassVar[str] = "how to run"

    precision: str | None = parameter(
        "precision of the denoiser, of those in the bundle; when not given, the one that suits what runs it best",
        unit="NAME",
    )
    branches_per_call: int | None = parameter(
        "with guidance, 2: both branches in one call of the network, 1: one call each, with less memory; when not "
        "given, 2 where they fit",
        unit="1|2",
    )
    tile: tuple[int, int] | None = parameter(
        "decode in tiles of at most this many pixels, such as 480x480: the same frames with less memory, but only once "
        "the last tile begins; when not given, whole where that fits",
        unit="HxW",
        form=HEIGHT_WIDTH,
    )
    backend: str | tuple[str, ...] | Backend = parameter(
        f"what executes the graphs; of several, such as onnxruntime{JOINED_BY}openvino, and with {ANY_BACKEND} of all, "
        "the fastest that run here",
        ANY_BACKEND,
        choices=(ANY_BACKEND, *BACKENDS),
        form=BACKEND_NAMES,
    )
    threads: int | None = parameter(
        "CPU threads, at most one for each core that this process may use; as many when not given", unit="N"
    )
    memory_limit: int | None = parameter(
        "memory that graphs may take, such as 8GB; on a GPU all that is free when not given. On the CPU, where what a "
        "graph takes while it runs is not known beforehand, it holds weights, inputs and outputs alone",
        unit="SIZE",
        form=BYTES,
    )
    cuda_graphs: bool = parameter(
        "whether a GPU replays each step as one captured graph", True, unit="on|off", form=ON_OFF
    )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RuntimeOptions:
        """The options that JSON says: bytes are a number there, `tile` is `[height, width]`.

        Raises:
            RequestError: a name that there is not, or a value of another type; names all of them at once.
        """
        return decode(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """What was given, as JSON has it.

        Raises:
            RequestError: `backend` is an object; JSON has names alone.
        """
        return encode(self)


class RuntimeFields(TypedDict, total=False):
    """The fields of `RuntimeOptions`, as keywords."""

    precision: str | None
    branches_per_call: int | None
    tile: tuple[int, int] | None
    backend: str | tuple[str, ...] | Backend
    threads: int | None
    memory_limit: int | None
    cuda_graphs: bool


def make_options(given: RuntimeFields) -> RuntimeOptions:
    """
    Raises:
        RequestError: there is no such parameter.
    """
    refuse_unknown(RuntimeOptions, given)
    return RuntimeOptions(**given)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """How to write the video."""

    TITLE: ClassVar[str] = "the file"

    codec: str = parameter("how to compress; auto goes by the file's ending", AUTO, choices=CODECS)


class OutputFields(TypedDict, total=False):
    """The fields of `OutputOptions`, as keywords."""

    codec: str
