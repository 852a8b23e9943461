"""The watermark: 64 known bits, faint in the brightness of every frame. Knows frames as arrays, and no file.

Each bit is a pattern of signs over the low orders of the cosine transform of the whole picture. The writer knows the
picture, and adds no more than what turns each bit's correlation with its pattern to the right side, with a margin, and
nowhere more than the texture there hides. The reader needs neither the original nor its size: orders are waves per
picture, so they stay when it is scaled. What was measured: docs/provenance.md.

The same frames get the same watermark on every machine. Products of matrices are of whole numbers so small that float64
holds every sum exactly, in whatever order a library adds: 53 bits for pictures of up to 8192x8192.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

BITS = 64
LEAST_BITS = 50  # that a watermark is read with; by chance in at most 4 of a million videos
LEAST_SIDE = 256  # pixels; a smaller picture cannot hide as much as a video codec leaves

_LOWEST_READ_SIDE = 64  # pixels; in fewer there are no such orders
_ORDERS = (12, 60)  # in waves per two pictures: below, the picture itself is strong; above, codecs and scaling cut
_NAME = b"mutoscope watermark 1"  # its hash decides the patterns, on every machine and for good
_MARGINS = (0.2, 0.4)  # of the correlation, in levels of 255: the least and the most
_MARGIN_OF_PICTURE = 1.2  # times the picture's own correlations: a busy picture hides more and loses more to a codec
_MOST_CHANGE = 4.0  # times the margin: a bit that needs more stays weaker
_PASSES = 3  # each adds what the limits, rounding, black and white have cut off before
_BLOCK = 8  # pixels a side in which texture is measured
_LIMIT_STEPS = 16  # of a limit, in levels of 255, as a whole number
_LIMITS = (1, 8)  # levels of 255 that a pixel may change: on a plain wall, and at most
_DIFFERENCES = 11  # between neighbours, summed over a block, that allow one step more
_MOST_SQUARE = 255**2 / 10**3.6  # mean square of the change of brightness: a PSNR of 36 dB, but for rounding
_FAINTEST = 0.01  # correlation of a bit that is counted: below is the rounding of a picture without any order
_LUMA = np.array([77, 150, 29], np.float32)  # of 256: those of BT.601
_WAVE_STEPS = 2.0**9  # of a cosine, as a whole number
_CHANGE_STEPS = 2.0**14  # of the change of an order, in levels of 255


@dataclass(frozen=True)
class Reading:
    """What was read: how many of the 64 bits are right, in the mean of so many frames."""

    bits: int
    frames: int

    @property
    def found(self) -> bool:
        """Whether the watermark is there."""
        return self.bits >= LEAST_BITS

    @property
    def chance(self) -> float:
        """How probable it is that as many bits are right in frames that have no watermark.

        The signs of the patterns are random, and no picture depends on them. So in any picture each bit is right with a
        probability of at most 1/2, whatever the others are: this is the tail of a binomial distribution.
        """
        ways: int = sum(math.comb(BITS, right) for right in range(self.bits, BITS + 1))
        return math.ldexp(ways, -BITS)


class Marker:
    """Writes the watermark into the frames of one video, `[H, W, 3]` each, and counts what can be read of it."""

    def __init__(self, height: int, width: int) -> None:
        self._transform = _Transform(height, width)
        self._limits = _Limits(height, width)
        self._sum = np.zeros(BITS)
        self._frames = 0

    def marked(self, chunks: Iterable[Pixels]) -> Iterator[Pixels]:
        """The same frames with the watermark, chunk by chunk; each frame is marked by itself.

        Args:
            chunks: uint8 `[n, H, W, 3]`.
        """
        for chunk in chunks:
            yield np.stack([self._mark(frame) for frame in chunk]) if len(chunk) else chunk

    def read(self) -> Reading:
        """What a reader finds in the frames that were marked so far, before any codec."""
        return _reading(self._sum, self._frames)

    def _mark(self, frame: Pixels) -> Pixels:
        picture, marked, luma = frame.astype(np.int16), frame, _luma(frame)
        limits, correlations = self._limits.of(luma), self._transform.correlations(luma)
        least, most = _MARGINS
        margin = min(max(_MARGIN_OF_PICTURE * float(np.sqrt(np.mean(correlations**2))), least), most)
        change = np.zeros(BITS)
        for _ in range(_PASSES):
            change = np.clip(change + np.maximum(margin - correlations, 0), 0, _MOST_CHANGE * margin)
            added = np.clip(self._transform.picture(change), -limits, limits)
            square = float(np.sum(np.rint(added) ** 2)) / added.size
            added = np.rint(added * math.sqrt(_MOST_SQUARE / max(square, _MOST_SQUARE)))
            marked = np.clip(picture + added.astype(np.int16)[..., None], 0, 255).astype(np.uint8)
            correlations = self._transform.correlations(_luma(marked))
        self._sum += correlations
        self._frames += 1
        return marked


def read(chunks: Iterable[Pixels]) -> Reading:
    """Looks for the watermark in frames of any origin, all of one size; holds one chunk at a time.

    Args:
        chunks: uint8 `[n, H, W, 3]`.
    """
    transform: _Transform | None = None
    total, frames = np.zeros(BITS), 0
    for chunk in chunks:
        for frame in chunk:
            if min(frame.shape[:2]) < _LOWEST_READ_SIDE:
                return Reading(0, 0)
            transform = transform or _Transform(*frame.shape[:2])
            total += transform.correlations(_luma(frame))
            frames += 1
    return _reading(total, frames)


def _reading(total: Floats, frames: int) -> Reading:
    return Reading(int((total > _FAINTEST * frames).sum()), frames) if frames else Reading(0, 0)


def why_none(height: int, width: int) -> str:
    """Why frames of this size get no watermark; empty where they do."""
    if min(height, width) < LEAST_SIDE:
        return f"{height}x{width} is smaller than {LEAST_SIDE}x{LEAST_SIDE}, too small to hold one"
    return ""


class _Transform:
    """The patterns in the orders of the cosine transform, for pictures of one size."""

    def __init__(self, height: int, width: int) -> None:
        self._rows, self._columns = _waves(height), _waves(width)
        self._scale = 1 / (height * width * _WAVE_STEPS**2)
        self._orders, self._patterns = _patterns()

    def correlations(self, luma: Floats) -> Floats:
        """How strongly each of the bits is there, float64 `[64]`, in levels of 255; below zero is the other value."""
        orders = self._rows @ luma @ self._columns.T * self._scale
        found: Floats = (orders.ravel()[self._orders] * self._patterns).sum(axis=1)
        return found

    def picture(self, change: Floats) -> Floats:
        """The brightness `[H, W]` that adds so much to each bit's correlation, with the least mean square."""
        orders = np.zeros((len(self._rows), len(self._columns)))
        orders.ravel()[self._orders] = np.rint(change[:, None] * self._patterns * _CHANGE_STEPS)
        return self._rows.T @ (orders @ self._columns) / (_CHANGE_STEPS * _WAVE_STEPS**2)


class _Limits:
    """How much each pixel may change, for pictures of one size: more where its neighbourhood is textured."""

    def __init__(self, height: int, width: int) -> None:
        self._down, self._across = _ramps(height), _ramps(width)
        self._scale = 1 / (_LIMIT_STEPS * (2 * _BLOCK) ** 2)

    def of(self, luma: Floats) -> Floats:
        """Levels of 255, float64 `[H, W]`."""
        differences = np.zeros((self._down.shape[1] * _BLOCK, self._across.shape[1] * _BLOCK))
        differences[: len(luma) - 1, : luma.shape[1]] = np.abs(np.diff(luma, axis=0))
        differences[: len(luma), : luma.shape[1] - 1] += np.abs(np.diff(luma, axis=1))
        blocks = differences.reshape(self._down.shape[1], _BLOCK, self._across.shape[1], _BLOCK).sum(axis=(1, 3))
        least, most = (_LIMIT_STEPS * limit for limit in _LIMITS)
        steps = np.minimum(least + blocks // _DIFFERENCES, most)
        limits: Floats = self._down @ steps @ self._across.T * self._scale
        return limits


def _luma(frame: Pixels) -> Floats:
    """Brightness in whole levels of 255, `[H, W]`."""
    return np.rint(frame.astype(np.float32) @ _LUMA / 256).astype(np.float64)


def _ramps(length: int) -> Floats:
    """Weights `[length, blocks]`, whole and of the sum `2 * _BLOCK`, that go from block to block without a step."""
    blocks = -(-length // _BLOCK)
    place = 2 * np.arange(length)[:, None] + 1 - _BLOCK * (2 * np.arange(blocks) + 1)
    ramps: Floats = np.maximum(2 * _BLOCK - np.abs(place), 0).astype(np.float64)
    ramps[:, [0, -1]] += (2 * _BLOCK - ramps.sum(axis=1))[:, None] * (ramps[:, [0, -1]] > 0)
    return ramps


def _waves(length: int) -> Floats:
    """Cosines `[orders, length]` with a mean square of 1, in whole steps: the rows of a DCT-II."""
    order, place = np.arange(_ORDERS[1] + 1)[:, None], np.arange(length) + 0.5
    waves = math.sqrt(2) * np.cos(math.pi * order * place / length)
    waves[0] = 1
    return np.rint(waves * _WAVE_STEPS)


@cache
def _patterns() -> tuple[NDArray[np.int64], Floats]:
    """Which orders belong to each bit, and with what sign and weight: two arrays `[64, n]`.

    A picture's orders fall off with their distance from the mean, so the weight grows with it.
    """
    low, high = _ORDERS
    down, across = np.mgrid[: high + 1, : high + 1]
    distance = np.hypot(down, across).ravel()
    orders = np.flatnonzero((distance >= low) & (distance <= high))
    random = np.frombuffer(hashlib.shake_256(_NAME).digest(8 * len(orders)), "<u8")
    mixed = np.argsort(random, kind="stable")[: len(orders) // BITS * BITS]
    each = orders[mixed].reshape(BITS, -1)
    patterns = np.where(random[mixed] & 1, 1, -1).reshape(each.shape) * distance[each]
    return each, patterns / np.linalg.norm(patterns, axis=1, keepdims=True)
