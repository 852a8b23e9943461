"""Values of a request, one at a time: taken as they should be, or refused with what is allowed and the nearest to it.

Knows names and ranges. Knows nothing of defaults, or of how the values belong together.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from fractions import Fraction
from numbers import Real
from typing import Any

from mutoscope_engines.system.machine import usable_cores

from ..errors import RequestError
from .frame_rates import parse_frame_rate
from .parameters import BYTES, HASHES, HEIGHT_WIDTH_FRAMES, LEVELS, ON_OFF, RATE, Form


def either(given: Any, default: Any) -> Any:
    """What was given, or the default where it is `None`."""
    return default if given is None else given


def text(name: str, value: Any) -> str:
    """A string that can be written as UTF-8."""
    if not isinstance(value, str):
        raise RequestError(f"{name} must be one string; got {type(value).__name__}. Call once for each video")
    try:
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{name} is not valid Unicode at character {error.start // 2 + 1}: {value[:60]!r}. "
            "Pass it as UTF-8 text; a lone surrogate is a byte that could not be decoded"
        ) from None


def whole(name: str, value: Any, *, minimum: int, maximum: int) -> int:
    """A whole number of any integer type, NumPy's too.

    Raises:
        RequestError: it is none, or out of range.
    """
    try:
        number = operator.index(value) if not isinstance(value, bool) else None
    except TypeError:
        number = None
    if number is None or not minimum <= number <= maximum:
        raise RequestError(f"{name} must be a whole number from {minimum} to {maximum}; got {value!r}")
    return number


def real(name: str, value: Any, *, minimum: float, maximum: float) -> float:
    """A number of any real type.

    Raises:
        RequestError: it is none, or out of range.
    """
    # mypy does not see that a Real compares with a float
    if not isinstance(value, Real) or isinstance(value, bool) or not minimum <= value <= maximum:  # type: ignore[operator]
        raise RequestError(f"{name} must be a number from {minimum:g} to {maximum:g}; got {value!r}")
    return float(value)


def frame_rate(name: str, value: Any) -> Fraction:
    """Frames per second, exact."""
    rate = None if isinstance(value, str) else parse_frame_rate(value)
    if rate is None:
        raise RequestError(RATE.refusal(name, value))
    return rate


def numbers(name: str, value: Any) -> tuple[float, ...]:
    """A sequence of numbers, be it of none."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return tuple(map(float, value))
    except (TypeError, ValueError):
        raise RequestError(LEVELS.refusal(name, value)) from None


def byte_count(name: str, value: Any) -> int:
    """Bytes; not zero."""
    try:
        return whole(name, value, minimum=1, maximum=2**63 - 1)
    except RequestError:
        raise RequestError(BYTES.refusal(name, value)) from None


def switch(name: str, value: Any) -> bool:
    """True or False, and nothing that only counts as one of them.

    Raises:
        RequestError: it is neither.
    """
    if not isinstance(value, bool):
        raise RequestError(ON_OFF.refusal(name, value))
    return value


def pixels(name: str, value: Any, form: Form) -> tuple[int, ...]:
    """Whole numbers of at least 1, as many as the form has."""
    try:
        found = tuple(map(operator.index, () if isinstance(value, (str, bytes)) else value))
    except TypeError:
        found = ()
    if len(found) != len(form.example) or min(found) < 1:
        raise RequestError(form.refusal(name, value))
    return found


def names(name: str, value: Any, form: Form) -> tuple[str, ...]:
    """One name, or a tuple of names; not several in one text."""
    each = (value,) if isinstance(value, str) else value
    if not isinstance(each, (tuple, list)) or not each:
        raise RequestError(form.refusal(name, value))
    for one in each:
        if not isinstance(one, str) or isinstance(form.parse(one), tuple):
            raise RequestError(form.refusal(name, value))
    return tuple(each)


def hashes(name: str, value: Any) -> tuple[str, ...]:
    """One SHA-256 in hexadecimal, or a tuple of them, in small letters; not several in one text."""
    each = (value,) if isinstance(value, str) else value
    if not isinstance(each, (tuple, list)) or not each:
        raise RequestError(HASHES.refusal(name, value))
    found: list[str] = []
    for one in each:
        parsed = HASHES.parse(one) if isinstance(one, str) else None
        if not isinstance(parsed, str):
            raise RequestError(HASHES.refusal(name, value))
        found.append(parsed)
    return tuple(found)


def threads(name: str, value: Any) -> int:
    """CPU threads: one for each core that this process may use, or fewer."""
    cores = usable_cores()
    try:
        return whole(name, cores if value is None else value, minimum=1, maximum=cores)
    except RequestError as error:
        raise RequestError(
            f"{error}. This process may use {cores} cores, and more threads than that only wait for each other"
        ) from None


def size(name: str, value: Any, allowed: range) -> int:
    """Pixels or frames: one of the numbers that a model allows.

    Raises:
        RequestError: it is none of them; names the nearest.
    """
    number = whole(name, value, minimum=1, maximum=allowed[-1])
    if number not in allowed:
        raise RequestError(f"{name} must be {multiples(allowed)}; got {number}; nearest: {_nearest(number, allowed)}")
    return number


def video_size(name: str, value: Any, allowed: Mapping[str, range]) -> tuple[int, ...]:
    """(height, width, num_frames), each one of the numbers that a model allows; `allowed` is in this order.

    Raises:
        RequestError: these are no three whole numbers, or one of them is not allowed.
    """
    found = zip(("height", "width", "length"), pixels(name, value, HEIGHT_WIDTH_FRAMES), allowed.values(), strict=True)
    return tuple(size(f"the {what} of {name}", number, numbers) for what, number, numbers in found)


def multiples(allowed: range) -> str:
    """Which numbers these are, in words, without the largest."""
    more = "" if allowed.start == allowed.step else f"{allowed.start} more than "
    return f"{more}a multiple of {allowed.step}"


def _nearest(value: int, allowed: range) -> str:
    """The nearest allowed values below and above one that is not; the least two where it is below all."""
    below = max(0, (value - allowed.start) // allowed.step)
    return ", ".join(map(str, allowed[below : below + 2]))
