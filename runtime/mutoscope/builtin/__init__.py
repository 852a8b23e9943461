"""The built-in bundle, shipped as package data in the folder of this file."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import BundleError


def bundle_path() -> Path:
    """Where the built-in bundle lies.

    Raises:
        BundleError: this installation has none.
    """
    path = Path(__file__).parent / "bundle"
    if not path.is_dir():
        remedy = (
            "freeze it again: PyInstaller collects the bundle by the hooks in mutoscope/pyinstaller_hooks; tell "
            "another freezer to collect the data files of the package mutoscope"
            if hasattr(sys, "frozen")
            else "install Mutoscope again"
        )
        raise BundleError(f"there is no built-in bundle in this program; name one, or {remedy}")
    return path
