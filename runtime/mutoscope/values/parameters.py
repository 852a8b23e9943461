"""How a parameter is declared, and how values are written that JSON and a command line have no type for.

Knows fields and forms. Knows no parameter.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from .byte_sizes import exact_bytes, parse_bytes
from .frame_rates import MAX_FPS, parse_frame_rate


@dataclass(frozen=True)
class Form:
    """How one kind of value is written: as text for people, and in Python."""

    in_text: str  # "a size with its unit, such as 8GB"
    in_python: str  # "a number of bytes"
    example: Any
    parse: Callable[[str], Any]  # from text; `None` for any other text
    write: Callable[[Any], str]  # as text that `parse` reads
    literal: Callable[[Any], str] = repr  # as Python
    several: bool = False  # the value is a tuple, and this is the form of each of its members

    def read(self, text: str) -> Any:
        """
        Raises:
            ValueError: the text is none of this form; says what would be.
        """
        value = self.parse(text)
        if value is None:
            raise ValueError(f"must be {self.in_text}; got {text!r}")
        return value

    def refusal(self, name: str, value: object) -> str:
        """Says what a parameter takes in Python. Of text it says how that is written instead."""
        parsed = self.parse(value) if isinstance(value, str) else None
        example = self.literal(self.example if parsed is None else parsed)
        return f"{name} must be {self.in_python}, such as {name}={example}; got {value!r}"


def about(
    help: str, *, choices: tuple[str, ...] = (), unit: str = "", form: Form | None = None, singular: str = ""
) -> dict[str, Any]:
    """The metadata of a field that is a parameter: what the command line says of it.

    Args:
        form: how values are written, where that is not plain from the field's type.
        singular: what one value is called, where the field has several and each is given by itself.
    """
    return {"help": help, "choices": choices, "unit": unit, "form": form, "singular": singular}


def parameter(help: str, default: Any = None, **metadata: Any) -> Any:
    """A field that is a parameter with a default; what has none is a `field` with `about` as its metadata.

    Args:
        metadata: the keywords of `about`.
    """
    return field(default=default, metadata=about(help, **metadata))


def _pixels(count: int) -> Callable[[str], tuple[int, ...] | None]:
    pattern = "x".join([r"\d{1,9}"] * count)

    def parse(text: str) -> tuple[int, ...] | None:
        return tuple(map(int, text.split("x"))) if re.fullmatch(pattern, text) else None

    return parse


def _numbers(text: str) -> tuple[float, ...] | None:
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        return None


def _path(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError
    return str(os.fspath(value))


def _hashes(text: str) -> str | tuple[str, ...] | None:
    each = tuple(text.lower().split(","))
    if not all(re.fullmatch(r"[0-9a-f]{64}", one) for one in each):
        return None
    return each if len(each) > 1 else each[0]


def number_text(number: float) -> str:
    """The shortest text that reads as the same number again."""
    return repr(float(number)).removesuffix(".0")


def names(joined_by: str, example: tuple[str, ...]) -> Form:
    """One name, or several with a sign between them."""

    def parse(text: str) -> str | tuple[str, ...]:
        each = tuple(name.strip() for name in text.split(joined_by))
        return each if len(each) > 1 else each[0]

    return Form(
        f"a name, or several, such as {joined_by.join(example)}",
        "a name or a tuple of names",
        example,
        parse,
        lambda value: value if isinstance(value, str) else joined_by.join(value),
    )


BYTES = Form(
    "a size with its unit, such as 8GB or 7.5GiB",
    "a number of bytes",
    8 * 10**9,
    lambda text: parse_bytes(text) or None,
    exact_bytes,
    lambda count: f"{count:_}",
)
HEIGHT_WIDTH = Form(
    "height x width in pixels, such as 480x480",
    "(height, width) in pixels",
    (480, 480),
    _pixels(2),
    lambda size: "x".join(map(str, size)),
)
HEIGHT_WIDTH_FRAMES = Form(
    "height x width x frames, such as 480x832x81",
    "(height, width, num_frames)",
    (480, 832, 81),
    _pixels(3),
    lambda size: "x".join(map(str, size)),
)
PICTURE = Form(
    "the path of a picture or video file, such as first.png",
    "a path, the bytes of a picture file, or an array uint8 [H, W, 3]",
    "first.png",
    lambda path: path or None,
    _path,
)
CLIP = Form(
    "the path of a video file, such as clip.mp4",
    "a path, the bytes of a video file, or an array uint8 [T, H, W, 3]",
    "clip.mp4",
    lambda path: path or None,
    _path,
)
MASK = Form(
    "the path of a picture or video file, such as mask.png",
    "a path, the bytes of a picture or video file, or an array uint8 [H, W, 3] or [T, H, W, 3]",
    "mask.png",
    lambda path: path or None,
    _path,
)
SEVERAL_PICTURES = Form(
    "one or more paths of picture files, such as cat.png",
    "a tuple of pictures, each a path, the bytes of a picture file, or an array uint8 [H, W, 3]",
    ("cat.png",),
    lambda path: path or None,
    _path,
    several=True,
)
OF_FILES = (PICTURE, CLIP, MASK, SEVERAL_PICTURES)  # the forms that in JSON are paths
ON_OFF = Form("on or off", "True or False", True, {"on": True, "off": False}.get, lambda on: "on" if on else "off")
LEVELS = Form(
    "numbers with commas between them, such as 1,0.75,0.5",
    "a sequence of numbers",
    (1.0, 0.75, 0.5),
    _numbers,
    lambda levels: ",".join(map(number_text, levels)),
)
SCALES = Form(
    "a number, or numbers with commas between them, such as 0.8",
    "a number or a sequence of numbers",
    0.8,
    lambda text: numbers if (numbers := _numbers(text)) is None or len(numbers) > 1 else numbers[0],
    lambda scales: ",".join(map(number_text, scales if isinstance(scales, Sequence) else (scales,))),
)
RATE = Form(
    f"a number or a ratio from 1 to {MAX_FPS}, such as 24, 12.5 or 24000/1001",
    f"a number or a Fraction from 1 to {MAX_FPS}",
    Fraction(24000, 1001),
    parse_frame_rate,
    str,
)
HASHES = Form(
    "a SHA-256 in hexadecimal, or several with commas between them",
    "a SHA-256 in hexadecimal, or a tuple of them",
    hashlib.sha256(b"").hexdigest(),
    _hashes,
    lambda value: value if isinstance(value, str) else ",".join(value),
)
