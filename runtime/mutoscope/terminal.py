"""Facts as text for a terminal, and the way to standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from .errors import OutputError
from .values.byte_sizes import format_bytes


def tell(text: str) -> None:
    """A line, or several, on standard output, at once.

    Raises:
        BrokenPipeError: whoever read it has gone.
        OutputError: it cannot be written.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output cannot be written: {error.strerror}; send it elsewhere") from error


def note(text: str) -> None:
    """A line on standard error; lost where nothing takes it, because a closed terminal must not cost a video."""
    with suppress(OSError):
        print(f"mutoscope: {text}", file=sys.stderr, flush=True)


def format_facts(facts: Mapping[str, Any]) -> str:
    """One line a fact, names aligned, a mapping's facts indented below its name."""
    return "\n".join(_lines(facts, ""))


def format_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their names, each as wide as its widest entry."""
    lines = [names, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _lines(facts: Mapping[str, Any], indent: str) -> Iterator[str]:
    longest = max(map(len, facts), default=0)
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}"
            yield from _lines(value, indent + "  ")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            if name.endswith("_bytes"):
                text = format_bytes(value)
            yield f"{indent}{name:<{longest}}  {text}".rstrip()
