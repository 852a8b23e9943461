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

from .clips import ClipSource
from .codec import decode, encode, refuse_unknown
from .errors import RequestError
from .output import AUTO, CODECS
from .output.metadata import LEVELS as LEVELS_OF_METADATA
from .output.metadata import MINIMAL
from .output.signing import AUTO as SIGN_AUTO
from .output.signing import WAYS
from .pictures import Picture, PictureSource
from .provenance.keys import Signer
from .solvers.solvers import SCHEDULERS
from .values.loras import LORA, Lora
from .values.parameters import (
    BYTES,
    CLIP,
    HASHES,
    HEIGHT_WIDTH,
    LEVELS,
    MASK,
    ON_OFF,
    PICTURE,
    RATE,
    SCALES,
    SEVERAL_PICTURES,
    about,
    names,
    parameter,
)

PICTURES = ("image", "last_image")  # the fields that are pictures
CLIPS = ("video", "extend")  # the fields that are clips
REFERENCES = "reference_images"  # the only field of several files
FILES = (*PICTURES, *CLIPS, "mask", REFERENCES)  # those that name a file
# Those that say what becomes of a clip, and what is made with it.
OF_CLIPS = (*CLIPS, "strength", "mask", REFERENCES, "conditioning_scale")
LORAS = ("loras", "loras_2")  # the fields that are LoRAs, in the order of the denoisers that they change
BACKEND_NAMES = names(JOINED_BY, ("onnxruntime", "openvino"))


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """One video. Names and meanings are those of Diffusers' `WanPipeline`."""

    TITLE: ClassVar[str] = "video"

    prompt: str = field(metadata=about("what the video shows"))
    negative_prompt: str | None = parameter("what the video should not show; used only with guidance", unit="TEXT")
    image: PictureSource | None = parameter(
        "picture that the video begins with; of a video file, its last frame", unit="FILE", form=PICTURE
    )
    last_image: PictureSource | None = parameter("picture that the video ends with", unit="FILE", form=PICTURE)
    video: ClipSource | None = parameter(
        "video to change: the new one begins from it in place of noise, follows the prompt, and has its frames' number "
        "and rate where these are not given; or, in a model that takes a mask, the clip that controls the new one",
        unit="FILE",
        form=CLIP,
    )
    strength: float | None = parameter(
        "how much of the given video may change, from above 0 to 1: at 1 all steps are made, at 0.5 the second half of "
        "them (default: 0.8)",
        unit="SHARE",
    )
    extend: ClipSource | None = parameter(
        "video to go on from: the new one has all of its frames, and after them those that a model makes of the last",
        unit="FILE",
        form=CLIP,
    )
    mask: ClipSource | Picture | None = parameter(
        "which parts of the given video are made anew: white ones, while black ones are kept (default: all, as the "
        "video says); a video of the same size and length, or a picture for all frames",
        unit="FILE",
        form=MASK,
    )
    reference_images: Sequence[PictureSource] | None = parameter(
        "pictures of what is to be seen in the video, such as a face or a thing", unit="FILE", form=SEVERAL_PICTURES
    )
    conditioning_scale: float | Sequence[float] | None = parameter(
        "how closely to follow video, mask and references: for all layers, or for each of those that follow them "
        "(default: 1)",
        unit="SCALE,...",
        form=SCALES,
    )
    height: int | None = parameter("height of the video", unit="PIXELS")
    width: int | None = parameter("width of the video", unit="PIXELS")
    num_frames: int | None = parameter(
        "length of the video in frames; with extend, of the new part, the frame that it goes on from included",
        unit="FRAMES",
    )
    num_inference_steps: int | None = parameter(
        "denoising steps; more steps take longer and give finer detail", unit="STEPS"
    )
    guidance_scale: float | None = parameter(
        "how closely to follow the prompt; 1 or less turns guidance off", unit="SCALE"
    )
    guidance_scale_2: float | None = parameter(
        "the same for the second denoiser of a model with two, used only with guidance (default: that of the first; "
        "the bundle's where both are left out)",
        unit="SCALE",
    )
    seed: int | None = parameter(
        "seed of the initial noise; the same seed gives the same video (default: random)", unit="N"
    )
    fps: Fraction | int | float | None = parameter(
        "frames per second of playback, such as 24, 12.5 or 24000/1001", unit="RATE", form=RATE
    )
    scheduler: str | None = parameter(
        "denoising solver; lcm suits few-step models trained to add new noise after each step",
        choices=tuple(SCHEDULERS),
    )
    flow_shift: float | None = parameter("shift of the noise schedule; larger videos need higher values", unit="SHIFT")
    sigmas: Sequence[float] | None = parameter(
        "the noise level of each step before the shift, such as 1,0.75,0.5,0.25 (default: the bundle's levels, or "
        "evenly spaced ones)",
        unit="LEVEL,...",
        form=LEVELS,
    )
    cache_interval: int = parameter(
        "after the first 30 % of the steps, extrapolate some steps but run the network at least every N steps; "
        "1 runs it at every step",
        1,
        unit="N",
    )
    max_sequence_length: int | None = parameter(
        "length of the encoded prompt in tokens, including padding; a text encoder that takes fewer uses its own limit",
        unit="TOKENS",
    )
    loras: Sequence[Lora] = parameter(
        "LoRAs that change the model for this video, each with its strength (default: 1); of a model with two "
        "denoisers, the first",
        (),
        unit="FILE[:STRENGTH]",
        form=LORA,
        singular="lora",
    )
    loras_2: Sequence[Lora] = parameter(
        "LoRAs that change the second denoiser of a model with two",
        (),
        unit="FILE[:STRENGTH]",
        form=LORA,
        singular="lora_2",
    )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VideoRequest:
        """The request that JSON says. Numbers are numbers there, `sigmas` a list; `fps` may be text: "24000/1001".

        Raises:
            RequestError: a name that there is not, a value of another type, no prompt; names all of them at once.
        """
        return decode(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """What was given, as JSON has it; `from_dict` makes the same request of it.

        Raises:
            RequestError: a picture or clip is bytes or an array; JSON has files alone.
        """
        return encode(self)


class FileFields(TypedDict, total=False):
    """The fields of `VideoRequest` that are files, as keywords."""

    image: PictureSource | None
    last_image: PictureSource | None
    video: ClipSource | None
    extend: ClipSource | None
    mask: ClipSource | Picture | None
    reference_images: Sequence[PictureSource] | None
    loras: Sequence[Lora]
    loras_2: Sequence[Lora]


class RequestFields(FileFields, total=False):
    """The fields of `VideoRequest`, as keywords."""

    prompt: str
    negative_prompt: str | None
    strength: float | None
    conditioning_scale: float | Sequence[float] | None
    height: int | None
    width: int | None
    num_frames: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_scale_2: float | None
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

    TITLE: ClassVar[str] = "execution"

    precision: str | None = parameter(
        "precision of the denoiser; the bundle must contain it (default: the best one for the backend)",
        unit="NAME",
    )
    branches_per_call: int | None = parameter(
        "with guidance, compute both branches in one call of the network (2) or in two calls with less memory (1) "
        "(default: 2 if memory allows)",
        unit="1|2",
    )
    tile: tuple[int, int] | None = parameter(
        "decode in tiles of at most this many pixels, such as 480x480: the same frames with less memory, but none of "
        "them before the last tile (default: no tiles if memory allows)",
        unit="HxW",
        form=HEIGHT_WIDTH,
    )
    backend: str | tuple[str, ...] | Backend = parameter(
        f"inference engine; name several, such as onnxruntime{JOINED_BY}openvino, to use the fastest of them, or "
        f"{ANY_BACKEND} to use the fastest available",
        ANY_BACKEND,
        choices=(ANY_BACKEND, *BACKENDS),
        form=BACKEND_NAMES,
    )
    threads: int | None = parameter(
        "CPU threads (default and maximum: the number of cores that this process may use)", unit="N"
    )
    memory_limit: int | None = parameter(
        "memory limit for the graphs, such as 8GB (default on a GPU: all free memory). On the CPU it covers only "
        "weights, inputs and outputs, because the memory for intermediate results is not known in advance",
        unit="SIZE",
        form=BYTES,
    )
    cuda_graphs: bool = parameter(
        "replay each denoising step as one CUDA graph on a GPU", True, unit="on|off", form=ON_OFF
    )
    engines_sha256: str | tuple[str, ...] | None = parameter(
        "SHA-256 of the index of the engines that came with the bundle, as the build printed that put them there; "
        "only with it are they loaded, because engines are executable code (for several bundles, name several)",
        unit="SHA256",
        form=HASHES,
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
    engines_sha256: str | tuple[str, ...] | None


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

    TITLE: ClassVar[str] = "output file"

    codec: str = parameter("video codec; auto chooses one by the file's ending", AUTO, choices=CODECS)
    metadata: str = parameter(
        "what the file tells everybody, beside the fact that a model made it: full has the prompt and the whole plan; "
        "minimal has the version, the hash of the bundle and the seed; none has nothing",
        MINIMAL,
        choices=LEVELS_OF_METADATA,
    )
    watermark: bool = parameter(
        "hide a watermark in the frames of the file, from 256x256 up, that says that a model made them; it outlives "
        "an ordinary encoding, which the metadata does not",
        True,
        unit="on|off",
        form=ON_OFF,
    )
    sign: str | Signer = parameter(
        "sign the file as C2PA says, in it or in a .c2pa file beside it; auto does so where c2pa-python is installed, "
        "of the extra provenance",
        SIGN_AUTO,
        choices=WAYS,
    )


class OutputFields(TypedDict, total=False):
    """The fields of `OutputOptions`, as keywords."""

    codec: str
    metadata: str
    watermark: bool
    sign: str | Signer
