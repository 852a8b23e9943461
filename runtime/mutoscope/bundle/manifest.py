"""What a bundle says of itself: `manifest.json`, read strictly.

Knows names, types and ranges. Knows nothing of files, hashes or backends; what contradicts itself or the contract is
refused by `checks.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any

import msgspec
from mutoscope_engines.precisions import base_precision

from ..errors import BundleError
from ..solvers.options import shifted
from ..solvers.solvers import MAX_STATE_ROWS
from ..values.frame_rates import MAX_FPS, parse_frame_rate
from .conditionings import (
    Conditioning,
    ControlConditioning,
    ImageConditioning,
    ImageEmbedsConditioning,
    NumberConditioning,
    TextConditioning,
    VideoConditioning,
)
from .contract import DENOISE, LORA_RANK, ROLES
from .record import DType, FlowShift, GuidanceScale, Natural, Positive, Record, Shape, Single

FORMAT_VERSION = 4
MANIFEST = "manifest.json"
MAX_STEPS = 1000  # the training timesteps of every model so far
MAX_BRANCHES = 2  # guidance: (negative, positive)
MAX_LORA_RANK = 512  # of all LoRAs of a video together; how large it may be costs an engine nothing


class GraphTensor(Record, frozen=True):
    """An input or output of a graph.

    Strings in `shape` are symbols, or products of them, as `mutoscope_engines.symbols` reads them.
    """

    name: str
    dtype: DType
    shape: Shape


class Graph(Record, frozen=True):
    """One ONNX graph: what it is for, how precise, where it is.

    Several may make one, part by part: what a part gives, later ones take by its name.
    """

    role: str  # one of `contract.ROLES`
    precision: str  # one of `mutoscope_engines.precisions.PRECISIONS`
    file: str
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    weights: tuple[str, ...] = ()  # the files that it takes weights from, which other graphs may share
    weight_bytes: Natural = 0  # as much of these files it reads
    part: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0  # from 1 on in the order in which they run; 0 is whole

    @property
    def name(self) -> str:
        """The role, whether LoRAs change it, and the number of the part where the graph is one."""
        takes_loras = any(LORA_RANK in tensor.shape for tensor in self.inputs)
        return self.role + ("-lora" if takes_loras else "") + (f".{self.part}" if self.part else "")


class Geometry(Record, frozen=True):
    """How pixels become latents, and latents tokens."""

    latent_channels: Positive
    vae_scale_factor_spatial: Positive
    vae_scale_factor_temporal: Positive  # follows from `Frames`, which the code reads; the two must agree
    patch_size: tuple[Positive, Positive, Positive]
    max_patches: Positive  # per axis: the length of the rotary tables
    # Latent pixels around a window of the features on which the frames of that window depend.
    vae_decoder_halo: Annotated[int, msgspec.Meta(ge=0, le=1 << 10)]

    def sizes(self, axis: int) -> range:
        """Every height (axis 0) or width (axis 1), in pixels, that a video may have: whole patches."""
        multiple = self.vae_scale_factor_spatial * self.patch_size[1 + axis]
        return range(multiple, multiple * self.max_patches + 1, multiple)


class Frames(Record, frozen=True):
    """How long a video may be, and how its frames come out of the decoder.

    `latents_per_call` and `frames_per_call` are of the first call of the decoder, and of every other.
    """

    first: Positive  # the shortest video
    step: Positive
    most: Positive
    latents_per_call: tuple[Positive, Positive] = (1, 1)
    frames_per_call: tuple[Positive, Positive] = (1, 1)

    @property
    def counts(self) -> range:
        """Every T that a video may have."""
        return range(self.first, self.most + 1, self.step)

    def calls(self, num_frames: int) -> int:
        """How often the decoder is called for a video of T frames."""
        return 1 + (num_frames - self.frames_per_call[0]) // self.frames_per_call[1]

    def latent_frames(self, num_frames: int) -> int:
        """F for T frames."""
        first, following = self.latents_per_call
        return first + following * (self.calls(num_frames) - 1)

    def slices(self, num_frames: int) -> Iterator[tuple[int, int]]:
        """Where the frames of each call of the decoder or encoder begin and end in a video of T frames."""
        first, following = self.frames_per_call
        return pairwise([0, *range(first, num_frames, following), num_frames])

    def num_frames(self, latent_frames: int) -> int:
        """T for F latent frames."""
        (first, following), (latents, further) = self.frames_per_call, self.latents_per_call
        return first + following * ((latent_frames - latents) // further)


class Expert(Record, frozen=True):
    """A denoiser, and from which timestep upwards it works. Of several, the one with the highest `above` reached."""

    role: str = "denoiser"
    above: Annotated[float, msgspec.Meta(ge=0, le=MAX_STEPS)] = 0.0
    guidance_scale: GuidanceScale | None = None  # where it has another default than the bundle's


class Draw(Record, frozen=True):
    """A random tensor that is drawn from the seed, f32, standard normal, for an input of the denoiser."""

    input: str
    shape: Shape


class Defaults(Record, frozen=True, omit_defaults=True):
    """What a request gets where it says nothing."""

    height: Positive
    width: Positive
    num_frames: Positive
    num_inference_steps: Annotated[int, msgspec.Meta(ge=1, le=MAX_STEPS)]
    guidance_scale: GuidanceScale
    fps: Annotated[int, msgspec.Meta(ge=1, le=MAX_FPS)] | str  # text is a ratio, such as "24000/1001"
    negative_prompt: str
    scheduler: str
    sigmas: tuple[float, ...] | None = None  # of a model that was distilled for them
    flow_shift: FlowShift | None = None  # where it is not that of `scheduler`

    def __post_init__(self) -> None:
        if parse_frame_rate(self.fps) is None:
            raise ValueError(f"fps is {self.fps!r}, not a rate from 1 to {MAX_FPS}")


NUMBERS = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale", "fps")  # of the defaults


class MergedLora(Record, frozen=True):
    """A LoRA that was added to the weights of a network before anything was made of them."""

    component: str  # of the checkpoint: "transformer"
    file: str  # its name, without folders
    sha256: str
    strength: Single


class Provenance(Record, frozen=True, omit_defaults=True):
    """Where the weights come from. `files` maps the checkpoint's files to their SHA-256."""

    checkpoint: str
    license: str
    attribution: str
    exported_by: str
    files: dict[str, str]
    loras: tuple[MergedLora, ...] = ()  # in the order in which they were added


class Parameter(Record, frozen=True):
    """A parameter of a network, as the files of LoRAs that change it know it."""

    shape: tuple[Positive, ...]
    original: str  # what the authors of the model call it


class LoraForm(Record, frozen=True):
    """A denoiser in the form whose weights LoRAs change while it runs: `contract.LORA_A` says how."""

    role: str
    parameters: dict[str, Parameter]  # all of the network, by their names in Diffusers
    graphs: tuple[Graph, ...]  # in one or more precisions


class Preview(Record, frozen=True):
    """A linear map from latents to RGB in 0..255: `weights` is `[C, 3]`, `bias` `[3]`."""

    weights: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float]


class Demonstration(Record, frozen=True):
    """What a small model understands. `pattern` is a regular expression that a whole known prompt matches."""

    pattern: str
    description: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern is not a regular expression: {error}") from error

    def understands(self, prompt: str) -> bool:
        """Whether the model was trained on prompts such as this one."""
        return re.fullmatch(self.pattern, prompt) is not None


class FileRecord(Record, frozen=True):
    """A file of the bundle: its SHA-256 in hexadecimal, and its size in bytes."""

    sha256: str
    size: Natural


class Manifest(Record, frozen=True):
    """Everything the runtime knows of a bundle before it opens a graph."""

    format_version: int
    family: str
    provenance: Provenance
    geometry: Geometry
    frames: Frames
    conditionings: tuple[Conditioning, ...]
    experts: tuple[Expert, ...]  # the first of a video first
    draws: tuple[Draw, ...]  # in the order in which they are drawn; one is `latents`
    defaults: Defaults
    scheduler: dict[str, Any]  # the checkpoint's scheduler configuration, as Diffusers writes it
    graphs: tuple[Graph, ...]
    files: dict[str, FileRecord]
    preview: Preview | None = None
    demonstration: Demonstration | None = None
    lora_forms: tuple[LoraForm, ...] = ()

    @property
    def sizes(self) -> dict[str, range]:
        """Every height, width and num_frames that a video may have, in this order."""
        return {"height": self.geometry.sizes(0), "width": self.geometry.sizes(1), "num_frames": self.frames.counts}

    @property
    def default_scheduler(self) -> dict[str, Any]:
        """`scheduler` with the shift that a request gets where it says none."""
        return shifted(self.scheduler, self.defaults.flow_shift)

    @property
    def symbol_ranges(self) -> dict[str, tuple[int, int]]:
        """The smallest and the largest size that each symbol of the graphs' shapes can take."""
        _, rows, columns = self.geometry.patch_size
        patches, frames = self.geometry.max_patches, self.frames
        lengths = {text.symbol: (1, text.max_sequence_length) for text in self.texts}
        return lengths | {
            "B": (1, MAX_BRANCHES),
            "F": (frames.latent_frames(frames.first), frames.latent_frames(frames.counts[-1])),
            "h": (rows, rows * patches),
            "w": (columns, columns * patches),
            "K": (1, MAX_STATE_ROWS),
            LORA_RANK: (1, MAX_LORA_RANK),
        }

    @property
    def texts(self) -> tuple[TextConditioning, ...]:
        """The conditionings that are prompts."""
        return tuple(each for each in self.conditionings if isinstance(each, TextConditioning))

    @property
    def numbers(self) -> tuple[NumberConditioning, ...]:
        """The conditionings that are numbers."""
        return tuple(each for each in self.conditionings if isinstance(each, NumberConditioning))

    @property
    def images(self) -> tuple[ImageConditioning, ...]:
        """The conditionings that are pictures."""
        return tuple(each for each in self.conditionings if isinstance(each, ImageConditioning))

    @property
    def image_embeds(self) -> tuple[ImageEmbedsConditioning, ...]:
        """The conditionings that are pictures as tokens."""
        return tuple(each for each in self.conditionings if isinstance(each, ImageEmbedsConditioning))

    @property
    def videos(self) -> tuple[VideoConditioning, ...]:
        """The conditionings that are clips to begin from."""
        return tuple(each for each in self.conditionings if isinstance(each, VideoConditioning))

    @property
    def controls(self) -> tuple[ControlConditioning, ...]:
        """The conditionings that are a clip with a mask and references."""
        return tuple(each for each in self.conditionings if isinstance(each, ControlConditioning))

    @property
    def followed(self) -> tuple[str, ...]:
        """The fields of a request that its conditionings read, what guidance steers away from included."""
        return tuple(dict.fromkeys(name for each in self.conditionings for name in each.fields))

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles whose graphs a video of this bundle runs, in order."""
        named = {role for each in self.conditionings for role in each.roles} | {each.role for each in self.experts}
        return tuple(name for name, role in ROLES.items() if name in named or (role.needed and role.stage != DENOISE))

    def roles_of(self, stage: str) -> tuple[str, ...]:
        """Those of `roles` that a stage runs."""
        return tuple(role for role in self.roles if ROLES[role].stage == stage)

    @property
    def all_graphs(self) -> tuple[Graph, ...]:
        """Also those that run where a video has LoRAs."""
        return (*self.graphs, *(graph for form in self.lora_forms for graph in form.graphs))

    def lora_form(self, role: str, precision: str) -> LoraForm | None:
        """That of a denoiser, if there is one in this precision."""
        forms = (form for form in self.lora_forms if form.role == role)
        return next((form for form in forms if any(graph.precision == precision for graph in form.graphs)), None)

    def precisions(self, role: str | None = None) -> list[str]:
        """Those of the graphs of a role; by default those in which the whole denoiser is there."""
        if role is not None:
            return list(dict.fromkeys(graph.precision for graph in self.graphs if graph.role == role))
        first, *others = (self.precisions(expert.role) for expert in self.experts)
        return [name for name in first if all(name in other for other in others)]

    def graphs_of(self, role: str, precision: str, *, with_loras: bool = False) -> tuple[Graph, ...]:
        """The parts of the graph of a role beside a denoiser of this precision: in the same, or else in its base.

        The denoiser itself has exactly this precision.

        Args:
            with_loras: of a denoiser, the form whose weights LoRAs change; `lora_form` says whether it is there.

        Raises:
            BundleError: there is no such graph; says which precisions there are.
        """
        there = self.graphs
        if with_loras and (form := self.lora_form(role, precision)) is not None:
            there = form.graphs
        wanted = [precision] if ROLES[role].stage == DENOISE else [precision, base_precision(precision)]
        for name in wanted:
            if found := [graph for graph in there if (graph.role, graph.precision) == (role, name)]:
                return tuple(sorted(found, key=lambda graph: graph.part))
        raise BundleError(
            f"the bundle has no {role!r} graph in {' or '.join(dict.fromkeys(wanted))}; "
            f"it has: {', '.join(self.precisions(role)) or 'none'}. "
            f"Export it in {precision}, too"
        )
