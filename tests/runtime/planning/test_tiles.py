"""Tiles cover a picture once, far enough from every side that is not the picture's; no smaller window would do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutoscope.planning.tiles import least_window, num_tiles, spans, tiles_of, window_within, windows

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

LENGTHS, HALOS, COUNTS = st.integers(1, 200), st.integers(0, 13), st.integers(1, 9)


@given(LENGTHS, HALOS, st.data())
def test_windows_lie_inside_and_keep_each_part_once_and_no_halo_of_an_inner_side(
    length: int, halo: int, data: st.DataObject
) -> None:
    window = data.draw(st.integers(min(length, 2 * halo + 1), length))
    found = spans(length, window, halo)
    assert [part for span in found for part in range(length)[span.kept]] == list(range(length))
    for span in found:
        stop = span.start + window
        assert span.start >= 0 and stop <= length
        assert span.start == 0 or span.kept_start - span.start >= halo
        assert stop == length or stop - span.kept_stop >= halo
        assert (span.kept_of_window.start + span.start, span.kept_of_window.stop + span.start) == (
            span.kept.start,
            span.kept.stop,
        )


@given(LENGTHS, HALOS, COUNTS)
def test_the_least_window_covers_with_as_many_tiles_and_one_less_does_not(length: int, halo: int, count: int) -> None:
    window = least_window(length, count, halo)
    assert len(spans(length, window, halo)) <= count
    if window - 1 > 2 * halo:
        assert len(spans(length, window - 1, halo)) > count


@given(LENGTHS, LENGTHS, HALOS, st.integers(0, 60), st.integers(0, 60))
def test_a_window_within_a_largest_one_needs_no_more_tiles(
    height: int, width: int, halo: int, rows: int, columns: int
) -> None:
    size, largest = (height, width), (2 * halo + 1 + rows, 2 * halo + 1 + columns)
    window = window_within(size, largest, halo)
    assert all(part <= most for part, most in zip(window, largest, strict=True))
    whole = (min(height, largest[0]), min(width, largest[1]))
    assert num_tiles(size, window, halo) == num_tiles(size, whole, halo)


@pytest.mark.parametrize("size", [(60, 104), (90, 160), (8, 12), (1, 1)])
def test_each_further_window_is_smaller_and_costs_more(size: tuple[int, int]) -> None:
    areas = [rows * columns for rows, columns in windows(size, 7)]
    costs = [num_tiles(size, window, 7) * window[0] * window[1] for window in windows(size, 7)]
    assert areas == sorted(areas, reverse=True) and costs == sorted(costs)
    assert all(area < size[0] * size[1] <= cost for area, cost in zip(areas, costs, strict=True))
    assert bool(areas) == (max(size) > 14)


def test_pasting_every_tile_gives_the_picture() -> None:
    size, window, halo, scale = (9, 14), (5, 8), 2, 3
    features = np.random.default_rng(0).standard_normal((1, 3, *size))
    picture = features[0].repeat(scale, 1).repeat(scale, 2).transpose(1, 2, 0)[None].repeat(4, 0)
    pasted = np.full_like(picture, np.nan)
    for tile in tiles_of(size, window, halo):
        of_window = tile.of_features(features)
        assert of_window.shape == (1, 3, *window)
        made = of_window[0].repeat(scale, 1).repeat(scale, 2).transpose(1, 2, 0)[None].repeat(4, 0)
        tile.paste(made, pasted, scale)
    np.testing.assert_array_equal(pasted, picture)
