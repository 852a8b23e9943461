"""Tells PyInstaller what a program with Mutoscope needs beyond what it finds by itself."""

from __future__ import annotations

from pathlib import Path


def hook_folders() -> list[str]:
    """Where the hooks lie; PyInstaller asks through the entry point `pyinstaller40`."""
    return [str(Path(__file__).parent)]
