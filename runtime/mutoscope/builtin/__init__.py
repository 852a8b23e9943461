"""The built-in bundle, shipped as package data in the folder of this file."""

from __future__ import annotations

from pathlib import Path

from ..errors import BundleError


def bundle_path() -> Path:
    """Where the built-in bundle lies.

    Raises:
        BundleError: this installation has none.
    """
    path = Path(__file__).parent / "bundle"
    if not path.is_dir():
        raise BundleError("this installation carries no built-in bundle; name one, or install Mutoscope again")
    return path
