"""The bundle: the one folder that export writes and the runtime reads, and the only thing they share.

Knows the manifest, its files and their hashes. Knows nothing of ONNX, backends or requests.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from .errors import BundleError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the manifest: immutable, and strict about names and types."""


class GraphTensor(_Record, frozen=True):
    """An input or output of a graph. Strings in `shape` are the symbols of the design, or products such as "2*h"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Graph(_Record, frozen=True):
    """One ONNX graph: what it is for, how precise, where it is."""

    role: str  # "text_encoder", "denoiser", "vae_decoder_first", "vae_decoder_next"
    precision: str  # "fp32", "int8", ...
    file: str
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]


class Geometry(_Record, frozen=True):
    """How pixels and frames become latents, and latents tokens."""

    latent_channels: int
    vae_scale_factor_spatial: int
    vae_scale_factor_temporal: int
    patch_size: tuple[int, int, int]
    max_patches: int  # per axis: the length of the rotary tables


class Text(_Record, frozen=True):
    max_sequence_length: int
    width: int
    pad_token_id: int


class Defaults(_Record, frozen=True):
    """What a request gets where it says nothing."""

    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    fps: int
    negative_prompt: str
    scheduler: str


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

    def precisions(self, role: str) -> list[str]:
        return [graph.precision for graph in self.graphs if graph.role == role]

    def graph(self, role: str, precision: str) -> Graph:
        """The graph of a role in this precision, or the only one there is where the role has one precision alone.

        Raises:
            BundleError: there is no such graph; says which precisions there are.
        """
        candidates = [graph for graph in self.graphs if graph.role == role]
        exact = [graph for graph in candidates if graph.precision == precision]
        found = exact or (candidates if len(candidates) == 1 else [])
        if not found:
            raise BundleError(
                f"the bundle has no {role!r} graph in {precision}; "
                f"it has: {', '.join(self.precisions(role)) or 'none'}. "
                f"Export it with --precision {precision}"
            )
        return found[0]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read. Its files are only handed out once `verify` has passed."""

    root: Path
    manifest: Manifest
    sha256: str  # of the manifest, which names the hash of every other file: the identity of the whole

    @classmethod
    def open(cls, root: Path | str, *, verify: bool = True) -> Bundle:
        """Reads a bundle, and checks every file's size and hash unless told not to.

        Raises:
            BundleError: missing, damaged, of an unknown version or unsafe.
        """
        root = Path(root)
        if not root.is_dir():
            raise BundleError(
                f"there is no bundle at {root}: not a folder. Make one with `mutoscope export CHECKPOINT {root}`"
            )
        try:
            content = (root / MANIFEST).read_bytes()
        except FileNotFoundError:
            raise BundleError(
                f"{root} has no {MANIFEST}: not a bundle, or its export did not finish. Export it again"
            ) from None
        except OSError as error:
            raise BundleError(f"{root / MANIFEST} cannot be read: {error.strerror}") from error
        bundle = cls(root, _decode(content), hashlib.sha256(content).hexdigest())
        if verify:
            for _ in bundle.verify():
                pass
        return bundle

    def verify(self) -> Iterator[str]:
        """Checks file after file and yields the name of each that is right.

        Raises:
            BundleError: at the first that is missing, unsafe, or of another size or hash than the manifest says.
        """
        listed = self.manifest.files
        for needed in [TOKENIZER, *(graph.file for graph in self.manifest.graphs)]:
            if needed not in listed:
                raise BundleError(f"the manifest of {self.root} does not list {needed}. Export the bundle again")
        for name, record in listed.items():
            try:
                self._check(name, record)
            except OSError as error:
                raise BundleError(f"{name} in {self.root} cannot be read: {error.strerror}") from error
            yield name

    def _check(self, name: str, record: FileRecord) -> None:
        path = self._safe_path(name)
        size = path.stat().st_size
        if size != record.size:
            raise BundleError(
                f"{name} in {self.root} has {size} bytes, the manifest says {record.size}: "
                "truncated or replaced. Copy or export the bundle again"
            )
        if _sha256(path) != record.sha256:
            raise BundleError(
                f"{name} in {self.root} does not have the hash that the manifest says: "
                "changed or damaged. Copy or export the bundle again"
            )

    def path(self, name: str) -> Path:
        """Where a file that the manifest lists lies.

        Raises:
            BundleError: it is not listed, missing, or its path leaves the folder.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{name!r} is not a file of the bundle {self.root}")
        return self._safe_path(name)

    def size_of(self, graph: Graph) -> int:
        """Bytes of a graph with its weights."""
        folder = str(PurePosixPath(graph.file).parent) + "/"
        return sum(record.size for name, record in self.manifest.files.items() if name.startswith(folder))

    @cached_property
    def _resolved_root(self) -> Path:
        return self.root.resolve()

    def _safe_path(self, name: str) -> Path:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name or not pure.parts:
            raise BundleError(f"the manifest of {self.root} names {name!r}, a path that leaves the bundle; refused")
        path = self.root / pure
        real_path = Path(os.path.realpath(path))  # `Path.resolve` would raise on a loop of links
        if not real_path.is_relative_to(self._resolved_root):
            raise BundleError(f"{name} in {self.root} is a link that leaves the bundle; refused")
        if not path.is_file():
            raise BundleError(f"{name} is missing from {self.root}. Copy or export the bundle again")
        return path


def _decode(content: bytes) -> Manifest:
    try:
        version = msgspec.json.decode(content)["format_version"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError) as error:
        raise BundleError(f"{MANIFEST} is damaged: {error!r}. Copy or export the bundle again") from error
    if version != FORMAT_VERSION:
        raise BundleError(
            f"the bundle has format version {version}, this Mutoscope reads {FORMAT_VERSION}. "
            "Export it again, or install the version that wrote it"
        )
    try:
        return msgspec.json.decode(content, type=Manifest)
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        raise BundleError(f"{MANIFEST} is not what this Mutoscope reads: {error}. Export the bundle again") from error


def write_manifest(root: Path, manifest: Manifest) -> Bundle:
    """Publishes a bundle: the last act of an export. `manifest.files` is filled in from what lies in `root`;
    names that start with a dot, such as what an interrupted call of this function leaves, are passed over.

    The manifest appears whole under its name or not at all.
    """
    files = {
        path.relative_to(root).as_posix(): FileRecord(sha256=_sha256(path), size=path.stat().st_size)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path != root / MANIFEST and not path.name.startswith(".")
    }
    content = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(manifest, files=files)), indent=1)
    temporary = root / f".{MANIFEST}.{os.getpid()}"
    with temporary.open("wb") as file:
        file.write(content + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, root / MANIFEST)
    return Bundle.open(root, verify=False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
