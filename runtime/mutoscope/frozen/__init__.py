"""What PyInstaller must know of this package, which it finds by the entry point `pyinstaller40`."""

from __future__ import annotations

from pathlib import Path


def hook_folders() -> list[str]:
    """Where its hooks are."""
    return [str(Path(__file__).parent)]
