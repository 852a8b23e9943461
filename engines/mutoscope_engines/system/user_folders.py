"""Where this user keeps what programs make for themselves. Knows the environment; makes no folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

from ..errors import BackendUnavailableError


def cache_folder() -> Path:
    """MUTOSCOPE_CACHE, or a folder where the system keeps caches: on Linux in XDG_CACHE_HOME or ~/.cache.

    Raises:
        BackendUnavailableError: the user has no home.
    """
    if named := os.environ.get("MUTOSCOPE_CACHE"):
        return Path(named)
    return _of_user(platformdirs.user_cache_path, "the engine cache", "HOME, XDG_CACHE_HOME or MUTOSCOPE_CACHE")


def data_folder(what: str = "the key that signs engines") -> Path:
    """A folder that is neither shared nor thrown away, as caches are: on Linux in XDG_DATA_HOME or ~/.local/share.

    Args:
        what: is to lie in it, for the error.

    Raises:
        BackendUnavailableError: the user has no home.
    """
    return _of_user(platformdirs.user_data_path, what, "HOME or XDG_DATA_HOME")


def _of_user(find: Callable[..., Path], what: str, variables: str) -> Path:
    try:
        folder = find("mutoscope", appauthor=False)
    except RuntimeError:  # older versions of the library give a path that begins with "~" instead
        folder = Path("~")
    if not folder.is_absolute():
        raise BackendUnavailableError(
            f"there is no folder for {what}: this user has no home folder. "
            f"Set {variables} to the absolute path of a folder that only this user can write to"
        )
    return folder
