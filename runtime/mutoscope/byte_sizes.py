"""Numbers of bytes as people write them."""

from __future__ import annotations

import math
import re

UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "kiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def format_bytes(count: int, *, round_up: bool = False) -> str:
    """In the largest decimal unit that leaves at least one, with two decimals."""
    for unit in ("GB", "MB", "kB"):
        if count >= UNITS[unit]:
            hundredths = count * 100 / UNITS[unit]
            return f"{(math.ceil if round_up else round)(hundredths) / 100:.2f} {unit}"
    return f"{count} bytes"


def parse_bytes(text: str) -> int | None:
    """What "8GB" or "7.5 GiB" says, or `None` for anything else."""
    found = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([kMG]i?B)\s*", text)
    return int(float(found[1]) * UNITS[found[2]]) if found else None
