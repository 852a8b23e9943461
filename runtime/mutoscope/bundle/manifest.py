"""What a bundle says of itself: `manifest.json`, read strictly.

Knows names, types, ranges and what contradicts itself. Knows nothing of files, hashes or backends.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from ..errors import BundleError
from ..solvers.schedule import MAX_STATE_ROWS
from ..values.frame_rates import MAX_FPS, parse_frame_rate

FORMAT_VERSION = 3
# Of this one all but int8 graphs are the same. These could overflow: docs/decisions/0021-int8-on-every-cpu.md.
BEFORE_SAFE_INT8 = 2
MANIFEST = "manifest.json"
ROLES = (
    "text_encoder", "denoiser", "vae_features_first", "vae_features_next", "vae_decoder_first", "vae_decoder_next",
)  # fmt: skip
TILED = ("vae_decoder_first", "vae_decoder_next")  # may run window by window
MAX_STEPS = 1000  # the training timesteps of every model so far
MAX_BRANCHES = 2  # guidance: (negative, positive)
# A network that has no graph in a precision of the denoiser's runs in the type that this one widens to.
BASE_PRECISIONS = {"int8": "fp32", "bf16-cpu": "fp32", "fp8": "bf16", "int8-static": "bf16"}

Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the manifest: immutable, and strict about names and types."""


def sized(shape: tuple[int | str, ...], symbols: Mapping[str, int]) -> tuple[int, ...]:
    """A shape as numbers: of numbers, symbols, and products such as "8*h" or "F*h//2", each factor rounded down."""
    return tuple(math.prod(_factor(factor, symbols) for factor in str(size).split("*")) for size in shape)


def _symbols(size: str) -> list[str]:
    """Those of a product, or what is written where it is none."""
    if not re.fullmatch(r"\w+(//[1-9]\d*)?(\*\w+(//[1-9]\d*)?)*", size):
        return [size]
    return [name for factor in size.split("*") if not (name := factor.partition("//")[0]).isdecimal()]


def _factor(factor: str, symbols: Mapping[str, int]) -> int:
    whole, _, divisor = factor.partition("//")
    return (int(whole) if whole.isdecimal() else symbols[whole]) // int(divisor or 1)


class GraphTensor(_Record, frozen=True):
    """An input or output of a graph. Strings in `shape` are the symbols of the design, or products as `sized` reads."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Graph(_Record, frozen=True):
    """One ONNX graph: what it is for, how precise, where it is.

    Several may make one, part by part: what a part gives, later ones take by its name.
    """

    role: str  # one of `ROLES`
    precision: str  # "fp32", "int8", ...
    file: str
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    weights: tuple[str, ...] = ()  # the files that it takes weights from, which other graphs may share
    weight_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0  # as much of these files it reads
    part: Annotated[int, msgspec.Meta(ge=0)] = 0  # from 1 on in the order in which they run; 0 is whole

    @property
    def name(self) -> str:
        return f"{self.role}.{self.part}" if self.part else self.role


class Geometry(_Record, frozen=True):
    """How pixels and frames become latents, and latents tokens."""

    latent_channels: Positive
    vae_scale_factor_spatial: Positive
    vae_scale_factor_temporal: Positive
    patch_size: tuple[Positive, Positive, Positive]
    max_patches: Positive  # per axis: the length of the rotary tables
    # Latent pixels around a window of the features on which the frames of that window depend.
    vae_decoder_halo: Annotated[int, msgspec.Meta(ge=0, le=1 << 10)]

    @property
    def size_multiples(self) -> tuple[int, int]:
        """What height and width must be multiples of: the pixels of one patch."""
        return self.vae_scale_factor_spatial * self.patch_size[1], self.vae_scale_factor_spatial * self.patch_size[2]


class Text(_Record, frozen=True):
    max_sequence_length: Positive
    width: Positive
    pad_token_id: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class Defaults(_Record, frozen=True, omit_defaults=True):
    """What a request gets where it says nothing."""

    height: Positive
    width: Positive
    num_frames: Positive
    num_inference_steps: Annotated[int, msgspec.Meta(ge=1, le=MAX_STEPS)]
    guidance_scale: Annotated[float, msgspec.Meta(ge=0, le=1000)]
    fps: Annotated[int, msgspec.Meta(ge=1, le=MAX_FPS)] | str  # text is a ratio, such as "24000/1001"
    negative_prompt: str
    scheduler: str
    sigmas: tuple[float, ...] | None = None  # of a model that was distilled for them

    def __post_init__(self) -> None:
        if parse_frame_rate(self.fps) is None:
            raise ValueError(f"fps is {self.fps!r}, not a rate from 1 to {MAX_FPS}")


class Provenance(_Record, frozen=True):
    """Where the weights come from. `files` maps the checkpoint's files to their SHA-256."""

    checkpoint: str
    license: str
    attribution: str
    exported_by: str
    files: dict[str, str]


class Preview(_Record, frozen=True):
    """A linear map from latents to RGB in 0..255: `weights` is `[C, 3]`, `bias` `[3]`."""

    weights: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float]


class Demonstration(_Record, frozen=True):
    """What a small model understands. `pattern` is a regular expression that a whole known prompt matches."""

    pattern: str
    description: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern is no regular expression: {error}") from error

    def understands(self, prompt: str) -> bool:
        return re.fullmatch(self.pattern, prompt) is not None


class FileRecord(_Record, frozen=True):
    sha256: str
    size: int


class Manifest(_Record, frozen=True):
    """Everything the runtime knows of a bundle before it opens a graph."""

    format_version: int
    family: str
    provenance: Provenance
    geometry: Geometry
    text: Text
    defaults: Defaults
    scheduler: dict[str, Any]  # the checkpoint's scheduler configuration, as Diffusers writes it
    graphs: tuple[Graph, ...]
    files: dict[str, FileRecord]
    preview: Preview | None = None
    demonstration: Demonstration | None = None

    @property
    def symbol_ranges(self) -> dict[str, tuple[int, int]]:
        """The smallest and the largest size that each symbol of the graphs' shapes can take."""
        frames, rows, columns = self.geometry.patch_size
        patches = self.geometry.max_patches
        return {
            "B": (1, MAX_BRANCHES),
            "L": (1, self.text.max_sequence_length),
            "F": (frames, frames * patches),
            "h": (rows, rows * patches),
            "w": (columns, columns * patches),
            "K": (1, MAX_STATE_ROWS),
        }

    def precisions(self, role: str) -> list[str]:
        return list(dict.fromkeys(graph.precision for graph in self.graphs if graph.role == role))

    def graphs_of(self, role: str, precision: str) -> tuple[Graph, ...]:
        """The parts of the graph of a role beside a denoiser of this precision: in the same, or else in its base.

        The denoiser itself has exactly this precision.

        Raises:
            BundleError: there is no such graph; says which precisions there are.
        """
        wanted = [precision] if role == "denoiser" else [precision, base_precision(precision)]
        for name in wanted:
            if found := [graph for graph in self.graphs if (graph.role, graph.precision) == (role, name)]:
                return tuple(sorted(found, key=lambda graph: graph.part))
        raise BundleError(
            f"the bundle has no {role!r} graph in {' or '.join(dict.fromkeys(wanted))}; "
            f"it has: {', '.join(self.precisions(role)) or 'none'}. "
            f"Export it with --precision {precision}"
        )


def base_precision(precision: str) -> str:
    """What the other graphs of a bundle have where the denoiser has `precision`."""
    return BASE_PRECISIONS.get(precision, precision)


def decode_manifest(content: bytes) -> Manifest:
    """The manifest that a file holds.

    Raises:
        BundleError: damaged, of another version, out of range, or contradicting itself.
    """
    try:
        version = msgspec.json.decode(content)["format_version"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError) as error:
        raise BundleError(f"{MANIFEST} is damaged: {error!r}. Copy or export the bundle again") from error
    if version not in (FORMAT_VERSION, BEFORE_SAFE_INT8):
        raise BundleError(
            f"the bundle has format version {version}, this Mutoscope reads {FORMAT_VERSION}, and "
            f"{BEFORE_SAFE_INT8} without int8 graphs. "
            "Export it again, or install the version that wrote it"
        )
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        raise BundleError(f"{MANIFEST} is not what this Mutoscope reads: {error}. Export the bundle again") from error
    if version == BEFORE_SAFE_INT8 and any(graph.precision == "int8" for graph in manifest.graphs):
        raise BundleError(
            f"the bundle has format version {version}, whose int8 graphs give wrong sums on CPUs without VNNI. "
            "Export it again"
        )
    _refuse_contradictions(manifest)
    return manifest


def _misfits(chain: list[Graph]) -> list[str]:
    """What parts take of each other otherwise than an earlier one gives it."""
    passed = {tensor.name for graph in chain for tensor in graph.outputs}
    made: dict[str, GraphTensor] = {}
    found = []
    for graph in chain:
        found += [
            f"{graph.name} in {graph.precision} takes {tensor.name} otherwise than a part before it gives it"
            for tensor in graph.inputs
            if tensor.name in passed and made.get(tensor.name) != tensor
        ]
        made |= {tensor.name: tensor for tensor in graph.outputs}
    return found


def _refuse_contradictions(manifest: Manifest) -> None:
    geometry, defaults = manifest.geometry, manifest.defaults
    complaints = [
        f"defaults.{name} is {size}, no multiple of {multiple} up to {multiple * geometry.max_patches}"
        for name, size, multiple in zip(
            ("height", "width"), (defaults.height, defaults.width), geometry.size_multiples, strict=True
        )
        if size % multiple or size > multiple * geometry.max_patches
    ]
    if manifest.preview and len(manifest.preview.weights) != geometry.latent_channels:
        complaints.append(f"preview has {len(manifest.preview.weights)} rows for {geometry.latent_channels} channels")
    symbols = {
        symbol
        for graph in manifest.graphs
        for tensor in (*graph.inputs, *graph.outputs)
        for size in tensor.shape
        if isinstance(size, str)
        for symbol in _symbols(size)
    }
    if unknown := sorted(symbols - set(manifest.symbol_ranges)):
        complaints.append(f"shapes of its graphs name {', '.join(unknown)}, which nothing gives a size")
    chains: dict[str, list[Graph]] = {}
    for graph in sorted(manifest.graphs, key=lambda graph: graph.part):
        chains.setdefault(f"{graph.role} in {graph.precision}", []).append(graph)
    for name, chain in sorted(chains.items()):
        numbers = [graph.part for graph in chain]
        if numbers != ([0] if len(chain) == 1 else [*range(1, len(chain) + 1)]):
            complaints.append(
                f"the graphs of the {name} are numbered {', '.join(map(str, numbers))}; one is 0, parts 1, 2, ..."
            )
        elif len(chain) > 1:
            complaints += _misfits(chain)
    complaints += [f"there is no graph of the {role}" for role in ROLES if not manifest.precisions(role)]
    if complaints:
        raise BundleError(f"{MANIFEST} contradicts itself: {'; '.join(complaints)}. Export the bundle again")
    for role in ROLES:
        for precision in manifest.precisions("denoiser"):
            manifest.graphs_of(role, precision)
