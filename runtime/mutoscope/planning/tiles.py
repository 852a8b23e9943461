"""Where the windows of a decode in tiles lie, and which sizes are worth trying.

Knows sizes in latent pixels, and the halo: how far around a window its frames depend on the features. Knows nothing of
graphs or memory.

All windows of a video have the same size, so that one engine and one captured graph serve them all, and lie inside of
the picture. Where a window ends with the picture, the convolutions' own padding is the true one; where it does not, a
halo of what it made is cut off. So the frames are those of the decode of the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

from numpy.typing import NDArray

from ..bundle.manifest import Geometry
from ..errors import RequestError
from ..values import checks
from ..values.parameters import HEIGHT_WIDTH

MOST_PER_AXIS = 5  # tiles: with more, most of what is computed is halo


@dataclass(frozen=True)
class Span:
    """One window along one axis: where it begins, and the part of the picture that is kept of it."""

    start: int
    kept_start: int
    kept_stop: int

    @property
    def kept(self) -> slice:
        """Of the picture."""
        return slice(self.kept_start, self.kept_stop)

    @property
    def kept_of_window(self) -> slice:
        """The same part, counted from where the window begins."""
        return slice(self.kept_start - self.start, self.kept_stop - self.start)


def spans(length: int, window: int, halo: int) -> list[Span]:
    """The fewest windows of a size that cover an axis. A window that does not is larger than two halos."""
    found: list[Span] = []
    covered = 0
    while covered < length:
        start = min(max(0, covered - halo), length - window)
        stop = length if start + window == length else start + window - halo
        found.append(Span(start, covered, stop))
        covered = stop
    return found


@dataclass(frozen=True)
class Tile:
    """One window of the picture."""

    rows: Span
    columns: Span
    window: tuple[int, int]

    def of_features(self, features: NDArray[Any]) -> NDArray[Any]:
        """`[1, C', h, w]` -> the view of its window `[1, C', rows, columns]`."""
        (top, left), (rows, columns) = (self.rows.start, self.columns.start), self.window
        return features[..., top : top + rows, left : left + columns]

    def paste(self, made: NDArray[Any], frames: NDArray[Any], scale: int) -> None:
        """The part that is kept of what a window became, `[T, rows, columns, 3]` times `scale`, into its place."""
        target, source = (
            tuple(slice(axis.start * scale, axis.stop * scale) for axis in axes)
            for axes in (
                (self.rows.kept, self.columns.kept),
                (self.rows.kept_of_window, self.columns.kept_of_window),
            )
        )
        frames[:, *target] = made[:, *source]


def tiles_of(size: tuple[int, int], window: tuple[int, int], halo: int) -> list[Tile]:
    """That cover a picture, each part of it once."""
    rows, columns = (spans(length, part, halo) for length, part in zip(size, window, strict=True))
    return [Tile(row, column, window) for row in rows for column in columns]


def num_tiles(size: tuple[int, int], window: tuple[int, int], halo: int) -> int:
    """How many windows of this size cover a picture."""
    return len(tiles_of(size, window, halo))


def least_window(length: int, tiles: int, halo: int) -> int:
    """The smallest window of which `tiles` cover an axis: the outer ones lose one halo, those between them two."""
    return min(length, -(-(length + 2 * (tiles - 1) * halo) // tiles))


def window_within(size: tuple[int, int], largest: tuple[int, int], halo: int) -> tuple[int, int]:
    """The smallest window that needs no more tiles than `largest`, which is not exceeded, does."""
    rows, columns = (
        least_window(length, len(spans(length, min(length, most), halo)), halo)
        for length, most in zip(size, largest, strict=True)
    )
    return rows, columns


def windows(size: tuple[int, int], halo: int) -> list[tuple[int, int]]:
    """Windows smaller than the whole, the least to compute first, each smaller than all before it."""
    heights, widths = ({least_window(length, count, halo) for count in range(1, MOST_PER_AXIS + 1)} for length in size)
    chosen: list[tuple[int, int]] = []
    for window in sorted(
        product(heights, widths), key=lambda window: num_tiles(size, window, halo) * math.prod(window)
    ):
        if math.prod(window) < math.prod(chosen[-1] if chosen else size):
            chosen.append(window)
    return chosen


def tile_window(tile: object, geometry: Geometry) -> tuple[int, int]:
    """Latent rows and columns of (height, width) in pixels, the largest tile with its halo.

    Raises:
        RequestError: it is no such size, or too small for the halo.
    """
    height, width = checks.pixels("tile", tile, HEIGHT_WIDTH)
    scale, least = geometry.vae_scale_factor_spatial, 2 * geometry.vae_decoder_halo + 1
    if min(height, width) < least * scale or height % scale or width % scale:
        raise RequestError(
            f"tile={(height, width)} must be multiples of {scale} and at least {least * scale}, because tiles "
            f"share {geometry.vae_decoder_halo * scale} pixels on each inner side"
        )
    return height // scale, width // scale
