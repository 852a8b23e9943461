"""Numbers of bytes as people write them."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

UNITS = {"GB": 10**9, "MB": 10**6, "kB": 10**3}


def format_bytes(count: int) -> str:
    """In the largest decimal unit that leaves at least one, with two decimals."""
    for unit, size in UNITS.items():
        if count >= size:
            return f"{round(count * 100 / size) / 100:.2f} {unit}"
    return f"{count} bytes"


def rounded_up(count: int) -> int:
    """The next number of bytes that `format_bytes` writes without loss."""
    size = next((size for size in UNITS.values() if count >= size), 100)
    return -(-count // (size // 100)) * (size // 100)


def exact_bytes(count: int) -> str:
    """The shortest text, to the byte, that `parse_bytes` reads, such as "8.13GB"."""
    unit, size = next(((unit, size) for unit, size in UNITS.items() if count >= size), ("kB", 1000))
    return f"{Decimal(count) / size:f}{unit}"


def parse_bytes(text: str) -> int | None:
    """What "8GB", "7.5 GiB" or "500m" says, or `None` for anything else.

    Upper and lower case, and a B at the end, make no difference; an i does: 8g, 8G and 8GB are 8 * 1000^3 bytes, 8gi
    and 8GiB are 8 * 1024^3.
    """
    found = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([kmgt])(i?)b?\s*", text, re.IGNORECASE)
    if not found:
        return None
    return int(Fraction(found[1]) * (1024 if found[3] else 1000) ** ("kmgt".index(found[2].lower()) + 1))
