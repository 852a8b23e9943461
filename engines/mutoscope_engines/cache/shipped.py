"""Engines that travel with a bundle, beside an index whose hash says that they are trusted.

Engines are executable code, and no key of this machine signed these: whoever loads them pins the index by its SHA-256,
and the index names the SHA-256 of each engine. Knows files and hashes. Knows nothing of bundles and compilers.

`index.json` has the records of all engines. Each is in `<sha256>.engine`, so that shipping others overwrites nothing
that is being read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import EngineError
from ..system.portable_files import sync
from .catalogue import EngineCatalogue
from .engine_cache import EngineCache
from .installation_key import is_signed, sign
from .record import EngineRecord
from .stored_engine import StoredEngine, read_engine

INDEX = "index.json"
_SIGNATURE = "index.signature"  # for whoever ships again; the pin, and not this, says that engines are trusted
FORMAT_VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
SHIP_AGAIN = "Get the bundle again, or build its engines with into_bundle"


@dataclass(frozen=True)
class ShippedEngines:
    """Engines whose index has a hash that the caller trusts."""

    folder: Path
    catalogue: EngineCatalogue

    @classmethod
    def open(cls, folder: Path, trusted: Collection[str]) -> ShippedEngines:
        """Reads the index.

        Args:
            trusted: SHA-256 of indexes, in hexadecimal; one of them must be this one's.

        Raises:
            EngineError: there is no index, or it is damaged, or none that is trusted.
        """
        try:
            content = (folder / INDEX).read_bytes()
        except OSError as error:
            raise EngineError(
                f"engines_sha256 is given, and {folder} has no {INDEX} of engines that can be read: {error.strerror}. "
                "Leave engines_sha256 out, or build them with into_bundle"
            ) from error
        found = hashlib.sha256(content).hexdigest()
        if found not in trusted:
            raise EngineError(
                f"{folder / INDEX} has the SHA-256 {found}, and engines_sha256 is {', '.join(sorted(trusted))}. No "
                f"engine was loaded, because engines are executable code. {SHIP_AGAIN}"
            )
        return cls(folder, EngineCatalogue(folder, _records(content, folder)))

    def load(self, record: EngineRecord) -> StoredEngine:
        """The engine of a record of the catalogue, its content checked.

        Raises:
            EngineMissingError: it is damaged, or has gone.
        """
        return read_engine(self.folder / name_of(record), record)


def ship(engines: Iterable[EngineRecord], cache: EngineCache, folder: Path) -> str:
    """Copies engines out of the cache, beside those that this installation shipped in `folder` before.

    Its signature of the index, beside that, says that it did: nobody else may have what they made named in our index.

    Returns: the SHA-256 of the index, to pin.

    Raises:
        EngineMissingError: an engine in the cache is damaged, or has gone.
        OSError: the folder cannot be written, or the disk is full.
    """
    key = cache.key()
    chosen = {record.identity.digest: record for record in (*_ours(folder, key), *engines)}
    folder.mkdir(exist_ok=True)
    for record in chosen.values():
        destination = folder / name_of(record)
        if not destination.exists():
            partial = destination.with_suffix(".partial")
            with cache.load(record).data as data, partial.open("wb") as file:
                file.write(data)
            sync(partial)
            os.replace(partial, destination)
    records = [asdict(record) for _, record in sorted(chosen.items())]
    said = {"format_version": FORMAT_VERSION, "engines": records}
    content = json.dumps(said, indent=1, sort_keys=True).encode() + b"\n"
    partial = folder / f"{INDEX}.partial"
    partial.write_bytes(content)
    sync(partial)
    os.replace(partial, folder / INDEX)
    (folder / _SIGNATURE).write_bytes(f"{sign(content, key)}\n".encode())
    named = {name_of(record) for record in chosen.values()}
    for path in (*folder.glob("*.engine"), *folder.glob("*.partial")):
        if path.name not in named:
            path.unlink()
    return hashlib.sha256(content).hexdigest()


def index_sha256(folder: Path) -> str | None:
    """The SHA-256 of the index in a folder, `None` where there is none. Nobody said that it is trusted."""
    try:
        return hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()
    except OSError:
        return None


def name_of(record: EngineRecord) -> str:
    """The file of an engine."""
    return f"{record.sha256}.engine"


def _records(content: bytes, folder: Path) -> tuple[EngineRecord, ...]:
    try:
        said = json.loads(content)
        if said["format_version"] != FORMAT_VERSION:
            raise ValueError(f"its format version is {said['format_version']!r}; this Mutoscope reads {FORMAT_VERSION}")
        records = tuple(EngineRecord.from_json(values) for values in said["engines"])
        if not all(_SHA256.fullmatch(record.sha256) for record in records):
            raise ValueError("a hash of an engine is none")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError(f"{folder / INDEX} cannot be used: {error}. {SHIP_AGAIN}") from error
    return records


def _ours(folder: Path, key: bytes) -> list[EngineRecord]:
    """The engines in a folder whose index this installation signed, if they are there still."""
    try:
        content = (folder / INDEX).read_bytes()
        signature = (folder / _SIGNATURE).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return []
    if not is_signed(content, signature, key):
        return []
    return [record for record in _records(content, folder) if (folder / name_of(record)).is_file()]
