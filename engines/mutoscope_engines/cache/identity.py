"""What an engine was made from, as one value: the same for the builder that names it and the session that looks for it.

Knows contents, shapes and versions. Knows nothing of files on disk beyond hashing a graph, and of no library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..system.file_hash import file_sha256

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeRange:
    """The shapes that one input of an engine takes; `opt` is the one that it is tuned for."""

    min: Shape
    opt: Shape
    max: Shape

    def __contains__(self, other: object) -> bool:
        return (
            isinstance(other, ShapeRange)
            and len(self.min) == len(other.min)
            and all(low <= size for low, size in zip(self.min, other.min, strict=True))
            and all(size <= high for size, high in zip(other.max, self.max, strict=True))
        )

    @classmethod
    def exactly(cls, shape: Shape) -> ShapeRange:
        """The range of one shape."""
        return cls(shape, shape, shape)


Profile = Mapping[str, ShapeRange]  # by the name of the input


@dataclass(frozen=True)
class EngineIdentity:
    """Everything that decides what an engine holds, each part by its content."""

    files: Mapping[str, str]  # SHA-256 of the graph and of its weights, by name in the graph's folder
    precision: str
    compute_capabilities: tuple[int, ...]  # in rising order
    profile: Profile
    library: str  # what compiles: module, version, and the platform it is made for
    flags: tuple[str, ...]  # of the compiler and of our own changes to the network, in alphabetical order

    @property
    def digest(self) -> str:
        """The name of the engine: SHA-256 of all parts."""
        return hashlib.sha256(canonical_json(asdict(self))).hexdigest()

    def misses(self, wanted: EngineIdentity) -> dict[str, str]:
        """Why an engine of this identity cannot serve as `wanted`, by component; empty when it can.

        It serves for fewer capabilities and narrower shapes than it was built for, and with flags that were not asked
        for. An input that `wanted.profile` does not name may have any shape.
        """
        missed = {
            name: f"{there}, not {asked}"
            for name in ("precision", "library")
            if (there := getattr(self, name)) != (asked := getattr(wanted, name))
        }
        if changed := sorted(
            name for name in {**self.files, **wanted.files} if self.files.get(name) != wanted.files.get(name)
        ):
            missed["files"] = f"{', '.join(changed)} changed"
        if absent := sorted(set(wanted.compute_capabilities) - set(self.compute_capabilities)):
            missed["compute_capabilities"] = f"{list(self.compute_capabilities)}, without {absent}"
        if absent_flags := sorted(set(wanted.flags) - set(self.flags)):
            missed["flags"] = f"without {', '.join(absent_flags)}"
        for name, shapes in wanted.profile.items():
            there = self.profile.get(name)
            if there is None or shapes not in there:
                takes = f"takes {list(there.min)} to {list(there.max)}" if there else "is no input"
                missed["profile"] = f"{name} {takes}, not {list(shapes.max)}"
                break
        return missed

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EngineIdentity:
        """The identity that `dataclasses.asdict` and JSON made of one. Anything else is a KeyError or TypeError."""
        if set(values) != {field.name for field in fields(cls)}:
            raise KeyError(f"an identity has other parts than {sorted(values)}")
        return cls(
            files=dict(values["files"]),
            precision=values["precision"],
            compute_capabilities=tuple(values["compute_capabilities"]),
            profile={name: profile_range(**shapes) for name, shapes in values["profile"].items()},
            library=values["library"],
            flags=tuple(values["flags"]),
        )


def profile_range(min: list[int], opt: list[int], max: list[int]) -> ShapeRange:
    """The range that JSON holds as lists."""
    return ShapeRange(tuple(min), tuple(opt), tuple(max))


def canonical_json(value: Any) -> bytes:
    """One spelling for one value, so that its hash is its identity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def content_of(graph: Path, *weights: Path) -> dict[str, str]:
    """`EngineIdentity.files` of a graph and the files with its weights, by reading them. A manifest says the same."""
    return {path.name: file_sha256(path) for path in (graph, *weights)}
