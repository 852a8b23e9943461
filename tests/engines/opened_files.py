"""Which files Python opens, as its own audit events tell."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_watched: list[tuple[str, list[str]]] = []  # a hook stays for the life of the process, so there is one


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _watched and isinstance(arguments[0], str | os.PathLike):
        path = Path(arguments[0])
        for folder, opened in _watched:
            if str(path.parent) == folder:
                opened.append(path.name)


sys.addaudithook(_note)


@contextmanager
def opened_files(folder: Path) -> Iterator[list[str]]:
    """The names of the files of a folder that are opened within the `with`, each as often as it is."""
    watch: tuple[str, list[str]] = (str(folder), [])
    _watched.append(watch)
    try:
        yield watch[1]
    finally:
        _watched.remove(watch)
