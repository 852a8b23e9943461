"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutoscope.values.byte_sizes import exact_bytes, format_bytes, parse_bytes, rounded_up


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *((text, 8_000_000_000) for text in ("8GB", "8g", "8G", "8gb", "8 GB", " 8g ", "8.0GB")),
        *((text, 8_589_934_592) for text in ("8GiB", "8Gi", "8gi", "8gib", "8 GiB")),
        ("500m", 500_000_000),
        ("64Mi", 67_108_864),
        ("1.5k", 1500),
        ("2T", 2_000_000_000_000),
        ("1Ti", 1_099_511_627_776),
        ("7.3GB", 7_300_000_000),
        ("0.1GiB", 107_374_182),
        ("4.35GB", 4_350_000_000),  # 4.35 * 10**9 is less in floating point
    ],
)
def test_a_size_is_read_exactly_in_units_of_1000_or_with_an_i_of_1024(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "8", "GB", "8 bytes", "8B", "8i", "8XB", "-8GB", "1e3GB", "8GBs", "8,5GB", "٨GB"])
def test_anything_else_is_none(text: str) -> None:
    assert parse_bytes(text) is None


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.00 kB"), (10**9, "1.00 GB"), (25 * 10**8, "2.50 GB")],
)
def test_a_size_is_shown_in_the_largest_unit_that_it_fills(size: int, text: str) -> None:
    assert format_bytes(size) == text


@given(st.integers(1, 999_999_999 * 10**9))
def test_a_size_is_written_to_the_byte_as_it_is_read(size: int) -> None:
    assert parse_bytes(exact_bytes(size)) == size


@pytest.mark.parametrize(
    ("size", "text"), [(8 * 10**9, "8GB"), (8_130_000_000, "8.13GB"), (10**6, "1MB"), (7, "0.007kB")]
)
def test_a_written_size_is_as_short_as_it_can_be(size: int, text: str) -> None:
    assert exact_bytes(size) == text


@given(st.integers(1, 10**13))
def test_a_size_that_is_rounded_up_is_no_less_and_at_most_a_hundredth_more(size: int) -> None:
    assert size <= rounded_up(size) <= size + max(size // 100, 1)
