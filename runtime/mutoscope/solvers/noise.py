"""The reference's random numbers. Knows how torch's CPU generator turns a seed into normal values, to the last bit on
x86. Knows nothing of latents, pipelines or devices.

Sources: Mersenne Twister 19937 (Matsumoto and Nishimura, 1998); Box and Muller (1958); Cephes' single-precision `logf`
and `sincosf` (Moshier), which torch evaluates on x86 vector units with fused multiply-adds; and, for the order in which
words are consumed, torch's `DistributionTemplates.h` and `DistributionsHelper.h`. Without AVX2 (on Arm, for one) torch
calls the C library instead, and its own values are then up to 3e-6 away from those on x86.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED_MIN, SEED_MAX = -(2**63), 2**64 - 1

Floats = NDArray[np.float32]
_f32 = np.float32

_BLOCK = 16
# Cephes: polynomials from the highest power down; ln 2 and pi / 4 in parts, the first of them exact in a product.
_LOG: tuple[float, ...] = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1)
_LOG += (-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)
_LN2_HIGH, _LN2_LOW = _f32(0.693359375), _f32(-2.12194440e-4)
_SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_QUARTER_PI = (0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)


class NormalStream:
    """What `torch.randn` gives, call after call, from `torch.Generator("cpu").manual_seed(seed)`: equal bits on x86.

    Raises:
        ValueError: a seed that torch refuses.
    """

    def __init__(self, seed: int) -> None:
        # The generator keeps 64 bits of seed, and its Mersenne Twister is started with the low 32 of them.
        self._words = np.random.RandomState(_checked_seed(seed) & 0xFFFFFFFF)  # a stream that NumPy has frozen (NEP 19)
        self._second: Floats = np.empty(0, _f32)  # of a pair whose first value was the last of a small call

    def draw(self, shape: tuple[int, ...]) -> Floats:
        """The next call's values, f32 of `shape`.

        Raises:
            ValueError: a negative size.
        """
        if any(size < 0 for size in shape):
            raise ValueError(f"shape must have no negative size; got {tuple(shape)}")
        count = math.prod(shape)
        if count >= _BLOCK:
            return _fill_blocks(self._words, count).reshape(shape)
        values = np.concatenate([self._second, _fill_pairs(self._words, count - len(self._second))])
        self._second = values[count:]
        return values[:count].reshape(shape)


def _checked_seed(seed: int) -> int:
    try:
        value = operator.index(seed)
    except TypeError:
        value = None
    if value is None or isinstance(seed, bool) or not SEED_MIN <= value <= SEED_MAX:
        raise ValueError(f"seed must be an integer from {SEED_MIN} to {SEED_MAX}; got {seed!r}")
    return value


def _next_words(words: np.random.RandomState, count: int) -> NDArray[np.uint32]:
    return words.randint(0, 2**32, size=count, dtype=np.uint32)


def _fill_blocks(words: np.random.RandomState, count: int) -> Floats:
    """16 values or more: blocks of 8 radii and 8 angles. A ragged end is drawn again as one fresh block of 16."""
    uniform = _next_words(words, count)
    whole = count - count % _BLOCK
    values = np.empty(count, _f32)
    values[:whole] = _box_muller(uniform[:whole])
    if whole < count:
        values[-_BLOCK:] = _box_muller(_next_words(words, _BLOCK))
    return values


def _box_muller(words: NDArray[np.uint32]) -> Floats:
    """[n * 16] words -> [n * 16] values, from 24 bits of each."""
    uniform = ((words & 0xFFFFFF).astype(_f32) * _f32(2**-24)).reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(_f32(-2) * _log(1 - uniform[:, 0]))
    sine, cosine = _sine_and_cosine(_f32(2 * np.pi) * uniform[:, 1])
    return np.stack([radius * cosine, radius * sine], axis=1).reshape(-1)


def _fill_pairs(words: np.random.RandomState, count: int) -> Floats:
    """Fewer than 16 values, one more where they are odd: pairs in float64 from 53 bits each, the cosine first."""
    pairs = max(0, count + 1) // 2
    halves = _next_words(words, 4 * pairs).reshape(pairs, 2, 2).astype(np.uint64)
    bits = (halves[..., 0] << np.uint64(32) | halves[..., 1]) & np.uint64(2**53 - 1)
    uniform = bits.astype(np.float64) * 2.0**-53
    radius, angle = np.sqrt(-2.0 * np.log1p(-uniform[:, 1])), 2.0 * np.pi * uniform[:, 0]
    values = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return values.reshape(-1).astype(_f32)


def _fma(a: Any, b: Any, c: Any) -> Floats:
    """a * b + c rounded to float32 once: in float64 the product of two float32 is exact."""
    total: Floats = (np.multiply(a, b, dtype=np.float64) + c).astype(_f32)
    return total


def _polynomial(coefficients: tuple[float, ...], x: Floats) -> Floats:
    value: Any = _f32(coefficients[0])
    for coefficient in coefficients[1:]:
        value = _fma(value, x, _f32(coefficient))
    return np.asarray(value)


def _log(x: Floats) -> Floats:
    """Natural logarithm of positive x: x = 2^e * (1 + t) with 1 + t from sqrt(1/2) to sqrt(2)."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < _f32(np.sqrt(0.5))
    e = (exponent - small).astype(_f32)
    t = np.where(small, (mantissa - 1) + mantissa, mantissa - 1)
    square = t * t
    tail = _fma(_polynomial(_LOG, t) * t, square, e * _LN2_LOW)
    tail = _fma(square, _f32(-0.5), tail)
    return _fma(e, _LN2_HIGH, t + tail)


def _sine_and_cosine(angle: Floats) -> tuple[Floats, Floats]:
    """Of angles from 0 to 2 pi: reduced to within pi / 4 of an even `octant`, which chooses polynomial and sign."""
    octant = ((angle * _f32(4 / np.pi)).astype(np.int32) + 1) & ~1
    x = angle
    for part in _QUARTER_PI:
        x = _fma(octant, -_f32(part), x)
    square = x * x
    sine = _fma(_polynomial(_SINE, square) * square, x, x)
    cosine = _fma(_polynomial(_COSINE, square) * square, square, square * _f32(-0.5)) + 1
    swap = (octant & 2) != 0
    sine, cosine = np.where(swap, cosine, sine), np.where(swap, sine, cosine)
    return np.where(octant & 4, -sine, sine), np.where((octant - 2) & 4, cosine, -cosine)
