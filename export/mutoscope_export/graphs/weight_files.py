"""The weights of the graphs in one folder, each content written once.

Knows bytes and files. Knows nothing of what the graphs compute, or of what makes two of their weights equal.

Each graph has a file of its own beside it, which holds what no graph before it in this folder has; the rest it reads
from their files. So the files of a graph do not depend on the graphs that are written after it. A weight is in memory
only while it is written; what turns out to be there already is cut off the file again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx_ir as ir

from .edit import size_of

SUFFIX = ".data"
_INLINE_BYTES = 1024  # up to this size a tensor stays in the graph


@dataclass(frozen=True)
class StoredWeights:
    """Which files beside a graph hold its weights, and how many bytes of them it reads."""

    files: tuple[str, ...] = ()
    num_bytes: int = 0


@dataclass(frozen=True)
class _Place:
    file: str
    offset: int
    length: int


class WeightFolder:
    """Where graphs are saved that may share weights."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[bytes, _Place] = {}  # by the SHA-256 of their bytes

    def save(self, model: ir.Model, name: str) -> StoredWeights:
        """Writes a graph as `name` into the folder, which is made where it is missing.

        The model's large initializers are external tensors afterwards.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        own = self.path / f"{name}{SUFFIX}"
        read: dict[_Place, None] = {}
        with own.open("w+b") as file:
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes <= _INLINE_BYTES:
                    continue
                offset = file.seek(0, 2)
                cast("ir.Tensor[Any]", tensor).tofile(file)  # every tensor has it, and the protocol lacks it
                length = file.seek(0, 2) - offset
                file.seek(offset)
                digest = hashlib.file_digest(file, "sha256").digest()
                place = self._places.setdefault(digest, _Place(own.name, offset, length))
                if place != _Place(own.name, offset, length):
                    file.truncate(offset)
                read[place] = None
                value.const_value = ir.ExternalTensor(
                    place.file, place.offset, length, tensor.dtype, shape=ir.Shape(size_of(tensor)),
                    name=value.name or "", base_dir=self.path,
                )  # fmt: skip
        if not own.stat().st_size:
            own.unlink()
        ir.save(model, self.path / name)
        return StoredWeights(tuple(dict.fromkeys(place.file for place in read)), sum(place.length for place in read))
