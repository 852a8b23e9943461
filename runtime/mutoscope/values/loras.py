"""A LoRA as callers name it: a file, and how much of it. Knows nothing of what files hold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from .parameters import Form, number_text


@dataclass(frozen=True, init=False)
class Lora:
    """A file of changes to a model's weights.

    Attributes:
        path: of a safetensors file.
        strength: what its changes are multiplied by: 1 as it was trained, 0 for none of it, below 0 for the opposite.
    """

    path: str
    strength: float = 1.0

    def __init__(self, path: str | os.PathLike[str], strength: float = 1.0) -> None:
        object.__setattr__(self, "path", os.fspath(path))
        object.__setattr__(self, "strength", strength)


def parse_lora(text: str) -> Lora | None:
    """From "FILE" or "FILE:STRENGTH"; `None` for any other text.

    A name may hold a colon: what exists under the whole text is the file.
    """
    name, colon, strength = text.rpartition(":")
    if not colon or Path(text).exists():
        return Lora(text) if text else None
    try:
        value = float(strength)
    except ValueError:
        # A drive of Windows, or a name with a colon that was misspelt.
        return None if Path(name).exists() else Lora(text)
    return Lora(name, value) if isfinite(value) else None


LORA = Form(
    "FILE or FILE:STRENGTH, with a number such as style.safetensors:0.8",
    "a sequence of Lora(path, strength)",
    (Lora("style.safetensors", 0.8),),
    parse_lora,
    lambda lora: f"{lora.path}:{number_text(lora.strength)}",
    lambda loras: repr(loras if isinstance(loras, tuple) else (loras,)),
    several=True,
)
