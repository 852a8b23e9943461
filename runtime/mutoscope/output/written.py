"""What is known of a file once it is written: place, size and hashes. Knows nothing of formats."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mutoscope_engines.system.file_hash import file_sha256

from ..provenance.layers import Layer


@dataclass(frozen=True)
class WrittenFile:
    """A finished file, or a folder of pictures."""

    path: Path
    bytes: int
    sha256: str
    """Of the file. Of a folder: of what `sha256sum *` prints in it."""
    content_sha256: str
    """The same before any signature, so that equal videos have equal ones."""
    layers: Mapping[str, Layer] = field(default_factory=dict)
    """By which of `mutoscope.provenance.layers` it says that it is AI-generated."""
    sidecar: Path | None = None
    """The file beside it with its signature, if the format cannot hold one."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; the path as it was given."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "content_sha256": self.content_sha256,
            "bytes": self.bytes,
            "sidecar": str(self.sidecar) if self.sidecar else None,
            "layers": {name: asdict(layer) for name, layer in self.layers.items()},
        }


def size_and_sha256(path: Path) -> tuple[int, str]:
    """Bytes and hash of a file, or of the files in a folder.

    Raises:
        OSError: it cannot be read.
    """
    if not path.is_dir():
        return path.stat().st_size, file_sha256(path)
    files = sorted(file for file in path.iterdir() if not file.name.startswith("."))  # a killed run leaves such
    listing = "".join(f"{file_sha256(file)}  {file.name}\n" for file in files)
    return sum(file.stat().st_size for file in files), hashlib.sha256(listing.encode()).hexdigest()
