"""What the page of results consists of: sections of rows. Knows nothing of figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the page: `read` makes its figures from the contents of `files`, in their order."""

    what: str
    files: tuple[str, ...]
    read: Callable[..., str]
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    title: str
    text: str
    rows: tuple[Row, ...]
