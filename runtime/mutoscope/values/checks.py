"""Values of a request, one at a time: taken as they should be, or refused with what is allowed and the nearest to it.

Knows names, ranges and memory. Knows nothing of defaults, or of how the values belong together.
"""

from __future__ import annotations

import operator
from fractions import Fraction
from numbers import Real
from typing import Any

from mutoscope_engines.system.machine import memory_bytes, usable_cores

from ..errors import RequestError
from .byte_sizes import parse_bytes
from .frame_rates import MAX_FPS, parse_frame_rate


def text(name: str, value: Any) -> str:
    """A string that can be written as UTF-8."""
    if not isinstance(value, str):
        raise RequestError(f"{name} must be one string; got {type(value).__name__}. Call once for each video")
    try:
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{name} is no valid Unicode at character {error.start // 2 + 1}: {value[:60]!r}. "
            "Pass it as UTF-8 text; a lone surrogate stands for a byte that is none"
        ) from None


def whole(name: str, value: Any, *, minimum: int, maximum: int) -> int:
    try:
        number = operator.index(value) if not isinstance(value, bool) else None
    except TypeError:
        number = None
    if number is None or not minimum <= number <= maximum:
        raise RequestError(f"{name} must be a whole number from {minimum} to {maximum}; got {value!r}")
    return number


def real(name: str, value: Any, *, minimum: float, maximum: float) -> float:
    # mypy does not see that a Real compares with a float
    if not isinstance(value, Real) or isinstance(value, bool) or not minimum <= value <= maximum:  # type: ignore[operator]
        raise RequestError(f"{name} must be a number from {minimum:g} to {maximum:g}; got {value!r}")
    return float(value)


def frame_rate(name: str, value: Any) -> Fraction:
    """Frames per second, exact."""
    rate = parse_frame_rate(value)
    if rate is None:
        raise RequestError(
            f"{name} must be a number or a ratio from 1 to {MAX_FPS}, such as 24, 12.5 or 24000/1001; got {value!r}"
        )
    return rate


def numbers(name: str, value: Any) -> tuple[float, ...]:
    """Numbers with commas between them, or a sequence of numbers, be it of none."""
    try:
        return tuple(map(float, value.split(",") if isinstance(value, str) else value))
    except (TypeError, ValueError):
        raise RequestError(
            f"{name} must be numbers with commas between them, such as 1,0.75,0.5; got {value!r}"
        ) from None


def memory_size(name: str, value: Any) -> int:
    """Bytes, as `parse_bytes` reads them; not zero."""
    count = parse_bytes(value) if isinstance(value, str) else None
    if not count:
        raise RequestError(f"{name} must be a size with its unit, such as 8GB or 7.5GiB; got {value!r}")
    return count


def threads(name: str, value: Any) -> int:
    """CPU threads: one for each core that this process may use, or fewer."""
    cores = usable_cores()
    try:
        return whole(name, cores if value is None else value, minimum=1, maximum=cores)
    except RequestError as error:
        raise RequestError(
            f"{error}. This process may use {cores} cores, and more threads than that only wait for each other"
        ) from None


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise RequestError(f"{name} must be {' or '.join(allowed)}; got {value!r}")
    return str(value)


def size(name: str, value: Any, multiple: int, max_patches: int) -> int:
    """Pixels: a multiple of `multiple`, at most `max_patches` of it."""
    pixels = whole(name, value, minimum=1, maximum=multiple * max_patches)
    if pixels % multiple:
        raise RequestError(
            f"{name} must be a multiple of {multiple}; got {pixels}; nearest: {_nearest(pixels, multiple)}"
        )
    return pixels


def frames(name: str, value: Any, allowed: range) -> int:
    """One of the counts that the family allows."""
    count = whole(name, value, minimum=1, maximum=allowed[-1])
    if count not in allowed:
        raise RequestError(
            f"{name} must be {allowed.start} more than a multiple of {allowed.step}; got {count}; "
            f"nearest: {_nearest(count, allowed.step, allowed.start)}"
        )
    return count


def fits_in_memory(state_bytes: int, frames_bytes: int) -> None:
    """Refuses a video whose solver state and frames alone are more than the machine has."""
    needed, available = state_bytes + frames_bytes, memory_bytes()
    if needed > available:
        raise RequestError(
            f"this video needs at least {needed} bytes of memory, {state_bytes} for the solver and {frames_bytes} for "
            f"its frames; {available} are available. Ask for a smaller height, width or num_frames"
        )


def _nearest(value: int, step: int, offset: int = 0) -> str:
    """The nearest allowed values, `offset` plus multiples of `step`, below and above."""
    below = offset + max(0, (value - offset) // step) * step
    return ", ".join(str(choice) for choice in (below, below + step) if choice > 0)
