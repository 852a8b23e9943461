"""The bytes of an engine, handed out only where they are those of its record. Knows files and hashes."""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path

from ..errors import EngineMissingError
from ..system.portable_files import content
from .catalogue import BUILD_IT
from .record import EngineRecord


@dataclass(frozen=True)
class StoredEngine:
    """An engine whose record and content were checked. `data` stays valid when the file is removed meanwhile."""

    record: EngineRecord
    data: mmap.mmap


def read_engine(path: Path, record: EngineRecord) -> StoredEngine:
    """The engine in a file, if it is that of a record.

    Raises:
        EngineMissingError: it is damaged, or has gone.
    """
    which = f"the engine of the {record.report.graph} in {path.parent}"
    try:
        data = content(path)
    except (OSError, ValueError) as error:  # a ValueError when it is empty
        raise EngineMissingError(f"{which} cannot be read: {error}. {BUILD_IT}") from error
    if hashlib.sha256(data).hexdigest() != record.sha256:
        data.close()
        raise EngineMissingError(f"{which} is damaged and was not loaded. {BUILD_IT}")
    return StoredEngine(record, data)
