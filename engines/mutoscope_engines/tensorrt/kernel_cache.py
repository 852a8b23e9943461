"""What TensorRT-RTX compiled for this GPU when an engine ran first, kept for the next process.

It is executable code like the engine, so only what carries this installation's mark is loaded. Knows files and the
mark. Knows nothing of the library, which checks for itself that driver, GPU and version are those of before.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from ..cache.engine_cache import EngineCache
from ..cache.installation_key import default_key_path, is_signed, make_key, read_key, sign
from ..errors import MutoscopeError
from ..system.portable_files import remove, replace

SIGNATURE_BYTES = 64  # SHA-256 in hexadecimal digits
KEPT_S = 90 * 86400.0  # without use


class KernelCache:
    """The file of one engine, in a folder beside the engines'."""

    def __init__(self, engines: EngineCache, digest: str, *, key_path: Path | None = None) -> None:
        self._engines = engines
        self._path = engines.folder.parent / "kernels" / f"{digest}.kernels"
        self._key_path = key_path or default_key_path()

    def load(self) -> bytes | None:
        """What was stored, or `None` where nothing was, or not by this installation."""
        key = read_key(self._key_path)
        try:
            content = self._path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):  # a read-only cache still serves
            os.utime(self._path)
        signature, compiled = content[:SIGNATURE_BYTES].decode("ascii", "replace"), content[SIGNATURE_BYTES:]
        return compiled if key is not None and is_signed(compiled, signature, key) else None

    def store(self, compiled: bytes) -> None:
        """Writes it anew, whole or not at all. Where it cannot be written or signed, the next process compiles."""
        with suppress(OSError, MutoscopeError), ExitStack() as left_over:
            if compiled == self.load():
                return
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self._path.parent, suffix=".partial")
            left_over.callback(Path(temporary).unlink, missing_ok=True)
            with open(descriptor, "wb") as file:
                file.write(sign(compiled, make_key(self._key_path)).encode() + compiled)
                file.flush()
                os.fsync(file.fileno())
            replace(Path(temporary), self._path)
            self._remove_unused()

    def _remove_unused(self) -> None:
        """Those of engines that have gone from the cache. One that came with a bundle never was there, so a file that
        is not of the cache stays for as long as it is used from time to time."""
        there = {record.identity.digest for record in self._engines.catalogue().records}
        oldest = time.time() - KEPT_S
        for path in self._path.parent.glob("*.kernels"):
            if path != self._path and path.stem not in there and path.stat().st_mtime < oldest:
                remove(path)
