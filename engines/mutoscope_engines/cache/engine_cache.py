"""The folder of built engines. A crash, a kill or a second builder at any moment leaves it sound.

Knows files, locks and hashes. Knows nothing of graphs, bundles or compilers.

`<digest>.json` is the signed record of an engine, and all that makes one count: it is renamed into place last and
removed first. It names the content of `<digest>.<content>.engine`, so that building an engine again overwrites nothing
that is being read. `<digest>.*.partial` is being written by whoever holds the lock on `<digest>.lock`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import EngineError
from ..system.file_hash import file_sha256
from ..system.file_lock import file_lock
from ..system.portable_files import is_ours, remove, replace, sync
from ..system.user_folders import cache_folder
from .catalogue import EngineCatalogue
from .identity import EngineIdentity
from .installation_key import default_key_path, make_key, read_key
from .record import EngineRecord, EngineReport, decode_record, encode_record
from .stored_engine import StoredEngine, read_engine

DEFAULT_LIMIT_BYTES = 64 * 10**9


def limit_from_environment() -> int:
    """Bytes: MUTOSCOPE_CACHE_GB in units of 10^9, or the default.

    Raises:
        EngineError: it is no positive number.
    """
    given = os.environ.get("MUTOSCOPE_CACHE_GB")
    if not given:
        return DEFAULT_LIMIT_BYTES
    try:
        limit = int(float(given) * 10**9)
    except (ValueError, OverflowError):
        limit = 0
    if limit <= 0:
        raise EngineError(f"MUTOSCOPE_CACHE_GB must be a positive number of gigabytes; got {given!r}")
    return limit


class EngineCache:
    """Engines by identity. Only those load that were signed with this installation's key.

    Args:
        folder: made when the first engine is built; nobody else may write to it.
        key_path: of the installation's key, made with it.
        limit_bytes: beyond it, the engines that were used least recently go.
    """

    def __init__(
        self, folder: Path | None = None, *, key_path: Path | None = None, limit_bytes: int | None = None
    ) -> None:
        self.folder = folder or cache_folder() / "engines"
        self.limit_bytes = limit_bytes or limit_from_environment()
        self._key_path = key_path or default_key_path()

    def catalogue(self) -> EngineCatalogue:
        """The records of this moment, each read and its signature checked once. Looks at no engine's content."""
        key = read_key(self._key_path)
        if key is None or not self._is_there():
            return EngineCatalogue(self.folder, ())
        found = [
            (_used_at(path), record)
            for path in self.folder.glob("*.json")
            if (record := self._read(path, key)) and self._engine(record).is_file()
        ]
        records = [record for _, record in sorted(found, key=lambda pair: pair[0], reverse=True)]
        return EngineCatalogue(self.folder, tuple(records))

    def key(self) -> bytes:
        """The installation's key, made now if there is none."""
        return make_key(self._key_path)

    def size_bytes(self) -> int:
        """Of all files, those of unfinished builds too."""
        return sum(_size(path) for path in self.folder.iterdir()) if self._is_there() else 0

    def load(self, record: EngineRecord) -> StoredEngine:
        """The engine of a record of the catalogue, its content checked, and marked as used.

        Raises:
            EngineMissingError: it is damaged, or has gone.
        """
        stored = read_engine(self._engine(record), record)
        self._touch(record.identity.digest)
        return stored

    @contextmanager
    def reserve(self, identity: EngineIdentity) -> Iterator[Reservation]:
        """Holds the place of an engine for one builder; another that wants the same waits here until it is done."""
        key = make_key(self._key_path)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._is_there()
        digest = identity.digest
        with file_lock(self.folder / f"{digest}.lock", wait=True):
            self._remove_leftovers(digest, key)
            record = self._read(self.folder / f"{digest}.json", key)
            if record and (not self._engine(record).is_file() or file_sha256(self._engine(record)) != record.sha256):
                record = None
            if record:
                self._touch(digest)
            descriptor, partial = tempfile.mkstemp(dir=self.folder, prefix=f"{digest}.", suffix=".partial")
            os.close(descriptor)
            try:
                yield Reservation(self, identity, key, Path(partial), record)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(partial)

    def trim(self, keep: Collection[str] = ()) -> int:
        """Removes what unfinished builds left, then the least recently used engines until the rest fits the limit.

        Args:
            keep: digests that stay, whatever the size.

        Returns: how many engines went.
        """
        if not self._is_there():
            return 0
        key = read_key(self._key_path)
        for digest in {path.name.partition(".")[0] for path in self.folder.iterdir()}:
            with file_lock(self.folder / f"{digest}.lock", wait=False) as held:
                if held:
                    self._remove_leftovers(digest, key)
        removed = 0
        for path in sorted(self.folder.glob("*.json"), key=_used_at):
            if self.size_bytes() <= self.limit_bytes:
                break
            if path.stem in keep:
                continue
            with file_lock(path.with_suffix(".lock"), wait=False) as held:
                if held:
                    remove(path)
                    self._remove_leftovers(path.stem, key)
                    removed += 1
        return removed

    def store(self, partial: Path, record: EngineRecord, key: bytes) -> None:
        """Gives an engine its name, and then its record: only that makes it count. For `Reservation`."""
        sync(partial)
        digest = record.identity.digest
        signed = partial.with_name(partial.name.removesuffix(".partial") + ".json.partial")
        signed.touch(mode=0o600)
        signed.write_bytes(encode_record(record, key))
        sync(signed)
        replace(partial, self._engine(record))
        replace(signed, self.folder / f"{digest}.json")
        sync(self.folder)
        self._remove_leftovers(digest, key)  # what was there before

    def _engine(self, record: EngineRecord) -> Path:
        return self.folder / f"{record.identity.digest}.{record.sha256[:16]}.engine"

    def _read(self, path: Path, key: bytes) -> EngineRecord | None:
        try:
            record = decode_record(path.read_bytes(), key)
        except OSError:
            return None
        return record if record and path.name == f"{record.identity.digest}.json" else None

    def _touch(self, digest: str) -> None:
        with suppress(OSError):  # a read-only cache still serves
            os.utime(self.folder / f"{digest}.json")

    def _remove_leftovers(self, digest: str, key: bytes | None) -> None:
        """What no record names, of a build that died or was replaced; the lock must be held."""
        leftovers = list(self.folder.glob(f"{digest}.*.partial"))
        path = self.folder / f"{digest}.json"
        record = self._read(path, key) if key else None
        if record or not path.exists():  # another installation's record may name any
            named = self._engine(record) if record else None
            leftovers += [engine for engine in self.folder.glob(f"{digest}.*.engine") if engine != named]
        for leftover in leftovers:
            remove(leftover)

    def _is_there(self) -> bool:
        """Whether the folder exists.

        Raises:
            EngineError: others may write to it.
        """
        try:
            facts = os.stat(self.folder)
        except FileNotFoundError:
            return False
        if not is_ours(facts, without=0o022):
            raise EngineError(
                f"other users may write to {self.folder}, and the engines in it are executable code. "
                f"Make the folder yours alone (chmod 700), or set MUTOSCOPE_CACHE to another folder"
            )
        return True


@dataclass
class Reservation:
    """The place of one engine while its builder holds it.

    Attributes:
        partial: where the builder writes; it goes away with the reservation.
        record: of the whole engine that is there already, or was published.
    """

    _cache: EngineCache
    identity: EngineIdentity
    _key: bytes
    partial: Path
    record: EngineRecord | None

    def publish(self, report: EngineReport, sha256: str) -> EngineRecord:
        """Gives the file at `partial` its name. `sha256` is that of what was written, not of what is read back."""
        self.record = EngineRecord(self.identity, report, sha256)
        self._cache.store(self.partial, self.record, self._key)
        return self.record


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
