"""The table for a terminal."""

from __future__ import annotations

from mutoscope_bench.stages import COLUMNS, STAGES
from mutoscope_bench.table import describe, seconds_text

from tests.bench.results import result


def test_the_table_names_ratio_reference_and_error() -> None:
    table = describe(result())
    ours = next(line for line in table.splitlines() if line.startswith("mutoscope"))
    theirs = next(line for line in table.splitlines() if line.startswith("diffusers"))
    assert "4.00x (3.90 to 4.20)" in theirs and "reference" in theirs
    assert "0.01" in ours and "41.8 dB" in ours


def test_seconds_keep_three_digits() -> None:
    assert [seconds_text(value) for value in (0.00123, 0.9, 0.9999, 12.34, 1234.5)] == [
        "1.23 ms", "900 ms", "1.00 s", "12.3 s", "1234 s",
    ]  # fmt: skip


def test_every_stage_with_a_heading_has_a_place_among_the_columns() -> None:
    assert sorted(COLUMNS) == sorted(name for name, stage in STAGES.items() if stage.column)
