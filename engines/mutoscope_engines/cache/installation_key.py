"""The key with which this installation marks the engines that it built. Knows files and permissions, no engines.

An engine is executable code. Whoever can write into the cache but cannot read this key cannot make one that loads.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from pathlib import Path

from ..errors import EngineError
from ..system.portable_files import is_ours, open_unlinked, write_private
from ..system.user_folders import data_folder

KEY_BYTES = 32


def default_key_path() -> Path:
    """In the user's data folder, not in the cache: caches are shared, synchronised and thrown away.

    Raises:
        BackendUnavailableError: the user has no home.
    """
    return data_folder() / "engine.key"


def sign(content: bytes, key: bytes) -> str:
    """HMAC-SHA256 of a content under this key, in hexadecimal digits."""
    return hmac.digest(key, content, "sha256").hex()


def is_signed(content: bytes, signature: str, key: bytes) -> bool:
    """Whether a signature is what `sign` gives; takes as long whatever differs."""
    return hmac.compare_digest(sign(content, key).encode(), signature.encode())


def read_key(path: Path) -> bytes | None:
    """The installation's key, or `None` where there is none yet.

    Raises:
        EngineError: somebody else could have read or written it.
    """
    try:
        file = open_unlinked(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EngineError(f"the key {path} cannot be read: {error.strerror}. {_REMEDY}") from error
    with file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode) or not is_ours(facts, without=0o077):
            raise EngineError(
                f"the key {path} must be a file of this user that no one else may open (mode 600). {_REMEDY}"
            )
        key = file.read(KEY_BYTES + 1)
    if len(key) != KEY_BYTES:
        raise EngineError(f"the key {path} is damaged. {_REMEDY}")
    return key


def make_key(path: Path) -> bytes:
    """The installation's key, made now if there is none. Of two that make it at once, one wins for both."""
    while (key := read_key(path)) is None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, secrets.token_bytes(KEY_BYTES))
    return key


_REMEDY = "Remove it and build the engines again"
