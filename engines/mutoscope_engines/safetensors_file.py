"""Reads safetensors files without any library: names, types and shapes at once, and each tensor's bytes when asked.

Everything that a file says of itself is checked before any of it is used. Knows nothing of what tensors are for.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import GraphError
from .system.file_hash import FileVersion

SUFFIXES = (".safetensors", ".sft")
ITEM_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6,
    "F4": 4, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
}  # fmt: skip
"""The types of the format, and the size of one number of each."""
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # and how NumPy reads their bytes
MOST_HEADER_BYTES = 100_000_000  # the limit of the format's own library

_LENGTH_BYTES = 8  # of the header's length, before the header
_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class StoredTensor:
    """What the header says of a tensor. `begin` and `end` are bytes of the file."""

    dtype: str  # one of `ITEM_BITS`
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A file that was opened: what is not read takes no memory.

    Attributes:
        tensors: by name, in the order of the header.
        metadata: what the writer noted, text by name.
    """

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]

    def __init__(self, path: Path) -> None:
        """
        Raises:
            GraphError: the file is damaged, or no safetensors file; says in what.
            OSError: it cannot be opened.
        """
        self.path = path
        with path.open("rb") as file:
            self._version = FileVersion.of(file)  # first: what is written from now on is refused, the header too
            size = self._version.size
            try:
                header, begin = _read_header(file.read(_LENGTH_BYTES), file, size)
                self.tensors, self.metadata = _checked(header, begin, size)
            except ValueError as error:
                raise GraphError(f"{path.name} is no safetensors file, or damaged: {error}. Get it again") from error
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read(self, name: str) -> memoryview:
        """The bytes of a tensor, row by row, little-endian. They are those of the file and must not be written to.

        Whoever cuts the file short meanwhile ends this process, so this is for files that nobody replaces.
        """
        tensor = self.tensors[name]
        return memoryview(self._mapped)[tensor.begin : tensor.end]

    def floats(self, name: str) -> NDArray[np.float32]:
        """A tensor of one of the types in `FLOATS`, of their numbers those nearest in float32.

        Raises:
            GraphError: the file was written to, or replaced, since it was opened.
            OSError: it cannot be opened any more.
        """
        tensor = self.tensors[name]
        with self.path.open("rb") as file:
            stored: NDArray[Any] = np.frombuffer(self._still_there(file, tensor), FLOATS[tensor.dtype])
        if tensor.dtype == "BF16":  # the upper half of a float32
            stored = (stored.astype("<u4") << 16).view("<f4")
        with np.errstate(over="ignore"):
            return stored.astype(np.float32).reshape(tensor.shape)

    def _still_there(self, file: BinaryIO, tensor: StoredTensor) -> bytes:
        file.seek(tensor.begin)
        found = file.read(tensor.end - tensor.begin)
        if FileVersion.of(file) != self._version:
            raise GraphError(f"{self.path.name} was written to while it was used; open it again")
        return found


def _read_header(length_field: bytes, file: Any, size: int) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors begin."""
    length = int.from_bytes(length_field, "little")
    if len(length_field) < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, MOST_HEADER_BYTES):
        raise ValueError(f"its header would have {length:,} bytes, and the file has {size:,}")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_repetition)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header, _LENGTH_BYTES + length


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header says something twice")
    return found


def _checked(header: dict[str, Any], begin: int, size: int) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{_METADATA} does not map text to text")
    tensors = {name: _tensor(name, said, begin) for name, said in header.items()}
    reached = begin
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != reached:
            raise ValueError(f"{name!r:.80} does not begin where the tensor before it ends")
        reached = tensor.end
    if reached != size:
        raise ValueError(f"its tensors end at byte {reached:,}, and the file has {size:,}")
    return tensors, metadata


def _tensor(name: str, said: Any, begin: int) -> StoredTensor:
    if not isinstance(said, dict) or set(said) != _FIELDS:
        raise ValueError(f"{name!r:.80} has other fields than {', '.join(sorted(_FIELDS))}")
    dtype, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise ValueError(f"{name!r:.80} is of type {dtype!r:.40}; there are {', '.join(ITEM_BITS)}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{name!r:.80} has the shape {shape!r:.80} and the bytes {offsets!r:.80}")
    if prod(shape) * ITEM_BITS[dtype] != 8 * (offsets[1] - offsets[0]):
        raise ValueError(f"{name!r:.80}, {dtype} {shape!r:.80}, does not fill its bytes {offsets!r:.80}")
    return StoredTensor(dtype, tuple(shape), begin + offsets[0], begin + offsets[1])


def _are_counts(value: Any) -> bool:
    """Whether it is a list of whole numbers from 0 on."""
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
