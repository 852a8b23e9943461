"""The weights of a network from files that are not in the Diffusers layout: as their authors or ComfyUI store them.

Finds which parameter each tensor is, and widens what is stored in eight bits with a scale. Reads headers when it opens
files, and a weight when it is asked for. Knows no model line: what the authors call a parameter is given.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import torch
from mutoscope_engines.errors import GraphError
from mutoscope_engines.safetensors_file import SUFFIXES, SafetensorsFile
from torch import Tensor

from ..errors import ExportError
from .location import PICKLES
from .stored_weights import DTYPES, StoredWeights, listed_files, refuse_pointer

_READ = DTYPES | {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
_TYPES = _READ | {"F64": torch.float64}
_SCALES = (".scale_weight", ".weight_scale")  # ComfyUI's until late 2025, and since
_OF_ACTIVATIONS = (".scale_input", ".input_scale")  # ranges that somebody measured; export measures its own
_FORMAT, _READ_FORMATS = ".comfy_quant", ("float8_e4m3fn", "float8_e5m2")
_MARK = "scaled_fp8"  # a tensor without a meaning but that all weights in FP8 have scales
_GGUF, _ZIP, _PICKLE = b"GGUF", b"PK\x03\x04", b"\x80"


@dataclass(frozen=True)
class StoredWeight:
    """Where a parameter is: its tensor, and the tensor that it must be multiplied with, if there is one."""

    file: SafetensorsFile
    name: str
    scale: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""
        return self.file.tensors[self.name].shape

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest type other than FP8 that holds it without loss."""
        if self.scale is not None:
            return torch.float32
        return DTYPES.get(self.file.tensors[self.name].dtype, torch.bfloat16)

    def read(self) -> Tensor:
        """The parameter, in `dtype`. One that needs no conversion stays in the mapped file: do not write to it."""
        stored = read_tensor(self.file, self.name)
        if self.scale is None:
            return stored.to(self.dtype)
        scale = read_tensor(self.file, self.scale).float()
        return stored.float().mul_(scale.reshape(-1, *[1] * (stored.ndim - 1)))


@dataclass(frozen=True)
class GivenWeights:
    """The weights of a network, by the names of its class. `files` are all that are read, an index among them."""

    files: tuple[Path, ...]
    weights: Mapping[str, StoredWeight]

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest type, other than FP8, that holds all of them without loss."""
        types = {weight.dtype for weight in self.weights.values()}
        return types.pop() if len(types) == 1 else torch.float32

    @property
    def stored(self) -> StoredWeights:
        """As if a folder had them."""
        (tag,) = (tag for tag, dtype in DTYPES.items() if dtype == self.dtype)
        shapes = {name: weight.shape for name, weight in self.weights.items()}
        return StoredWeights(self.files, shapes, frozenset([tag]))


def open_weights(path: Path, original_names: Mapping[str, str]) -> GivenWeights:
    """What a file of weights, or an index of several, holds for a network.

    A prefix that all names have is taken off. A name that the network does not know is left as it is.

    Args:
        original_names: the parameters of the network by its class's names, to what the authors call them.

    Raises:
        ExportError: it is of another format, damaged, incomplete, or has weights in a type that is not read.
    """
    if path.name.endswith(".json"):
        refuse_pointer(path)
        files = [path, *listed_files(path.parent, path)]
    elif shard := re.fullmatch(r"(.+)-\d{5}-of-\d{5}(\.\w+)", path.name):
        raise ExportError(
            f"{path.name} is one of several files. Name their index, {shard[1]}{shard[2]}.index.json, with all of them "
            "beside it"
        )
    else:
        files = [path]
    opened = [open_file(file) for file in files if file.suffix != ".json"]
    names = {name: file for file in opened for name in file.tensors}
    if len(names) != sum(len(file.tensors) for file in opened):
        raise ExportError(f"the files that {path.name} lists hold the same weights twice. Get them again")
    return GivenWeights(tuple(files), _by_class_names(_parted(path.name, names), original_names))


def weights_of_files(files: Iterable[Path]) -> GivenWeights:
    """The weights in files of the Diffusers layout.

    Raises:
        ExportError: a file is damaged.
    """
    files = tuple(files)
    opened = [open_file(file) for file in files if file.suffix == ".safetensors"]
    return GivenWeights(files, {name: StoredWeight(file, name) for file in opened for name in file.tensors})


def open_file(path: Path) -> SafetensorsFile:
    """
    Raises:
        ExportError: it is not there, of another format or damaged; says what to do.
    """
    refuse_other_formats(path)
    try:
        return SafetensorsFile(path)
    except GraphError as error:
        raise ExportError(str(error)) from error


def refuse_other_formats(path: Path) -> None:
    """
    Raises:
        ExportError: a file of weights is not there, or is none that can be read; says what to do.
    """
    if not path.is_file():
        raise ExportError(f"there is no file {path}. Check the name")
    refuse_pointer(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start == _GGUF or path.suffix.lower() == ".gguf":
        raise ExportError(
            f"{path.name} is a GGUF file, whose weights are quantised in blocks, and is not read. Get the same model "
            "as safetensors, in bf16, fp16 or scaled fp8; an export in int8 or fp8 is as small"
        )
    if path.suffix.lower() in PICKLES or start == _ZIP or (start[:1] == _PICKLE and path.suffix not in SUFFIXES):
        raise ExportError(
            f"{path.name} is a pickle, which can run code when it is opened, and is not read. Get the same model as "
            "safetensors, or load the file with torch.load(weights_only=True) and save it with safetensors"
        )


def read_tensor(file: SafetensorsFile, name: str) -> Tensor:
    """A tensor as it is stored, in the mapped file: do not write to it."""
    tensor = file.tensors[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.frombuffer(file.read(name), dtype=_TYPES[tensor.dtype]).reshape(tensor.shape)


def _parted(source: str, names: Mapping[str, SafetensorsFile]) -> dict[str, StoredWeight]:
    """The weights by the names of the file, each with its scale, without what only says how they were quantised."""
    _refuse_other_quantisations(source, names)
    scales = {_scaled(name): name for name in names if name.endswith(_SCALES)}
    ours = {
        name: StoredWeight(file, name, scales.get(name))
        for name, file in names.items()
        if not name.endswith((*_SCALES, *_OF_ACTIVATIONS, _FORMAT, _MARK))
    }
    unread = sorted({file.tensors[name].dtype for name, file in names.items() if name in ours} - set(_READ))
    if unread:
        raise ExportError(
            f"{source} has weights in {', '.join(unread)}; supported: {', '.join(_READ)}. Get the model in one of these"
        )
    for weight, scale in scales.items():
        _refuse_other_scale(source, weight, scale, names)
    fp8 = [name for name, each in ours.items() if each.file.tensors[name].dtype not in DTYPES and each.scale is None]
    if fp8 and any(name.endswith(_MARK) for name in names):
        raise ExportError(
            f"{source} says that its weights in FP8 are scaled, and {len(fp8)} of them have no scale ({min(fp8)}). "
            "Get it again"
        )
    return ours


def _scaled(scale: str) -> str:
    """The weight that a scale is for."""
    return scale.rpartition(".")[0] + ".weight"


def _refuse_other_quantisations(source: str, names: Mapping[str, SafetensorsFile]) -> None:
    for name, file in names.items():
        if not name.endswith(_FORMAT):
            continue
        try:
            said = json.loads(bytes(file.read(name)))["format"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ExportError(f"{source} does not say how it is quantised: {name} is damaged. Get it again") from error
        if said not in _READ_FORMATS:
            raise ExportError(
                f"{source} is quantised as {said!r:.40}; of quantised weights, {' and '.join(_READ_FORMATS)} are read. "
                "Get the model in one of these, or in bf16 or fp16"
            )


def _refuse_other_scale(source: str, weight: str, scale: str, names: Mapping[str, SafetensorsFile]) -> None:
    """One number for the tensor, or one for each row."""
    file = names[scale]
    said = file.tensors[scale]
    if weight not in names:
        raise ExportError(f"{source} has {scale} and not {weight}. Get it again")
    rows = names[weight].tensors[weight].shape[:1]
    count = [size for size in said.shape if size != 1]
    if said.dtype not in DTYPES or names[weight] is not file or count not in ([], list(rows)):
        raise ExportError(
            f"{source} has {scale} as {said.dtype} {list(said.shape)}; a scale is one number, or one for each row of "
            f"its weight, in {', '.join(DTYPES)}. Get the model in bf16 or fp16"
        )


def _by_class_names(weights: Mapping[str, StoredWeight], original_names: Mapping[str, str]) -> dict[str, StoredWeight]:
    """The layout is that of which more names are found."""
    levels = zip(*(name.split(".")[:-1] for name in weights), strict=False)
    prefix = "".join(f"{parts[0]}." for parts in takewhile(lambda parts: len(set(parts)) == 1, levels))
    bare = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    from_original = {original: name for name, original in original_names.items()}
    if len(from_original.keys() & bare.keys()) <= len(original_names.keys() & bare.keys()):
        return bare
    return {from_original.get(name, name): weight for name, weight in bare.items()}
