"""Sizes that a graph leaves open: symbols such as "h", and products of them such as "8*h" or "F*h//2".

Knows the spelling. Knows nothing of what a symbol stands for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_PRODUCT = re.compile(r"\w+(//[1-9]\d*)?(\*\w+(//[1-9]\d*)?)*")


def sized(shape: tuple[int | str, ...], symbols: Mapping[str, int]) -> tuple[int, ...]:
    """A shape as numbers: of numbers, symbols, and products such as "8*h" or "F*h//2", each factor rounded down.

    Raises:
        KeyError: it names a symbol that has no size.
    """
    return tuple(math.prod(_factor(factor, symbols) for factor in str(size).split("*")) for size in shape)


def symbols_of(size: int | str) -> list[str]:
    """The symbols of a size. A text that is no product, such as the name of an axis without one, is its own symbol."""
    if not _PRODUCT.fullmatch(text := str(size)):
        return [text]
    return [name for factor in text.split("*") if not (name := factor.partition("//")[0]).isdecimal()]


def _factor(factor: str, symbols: Mapping[str, int]) -> int:
    whole, _, divisor = factor.partition("//")
    return (int(whole) if whole.isdecimal() else symbols[whole]) // int(divisor or 1)
