"""What is compared with what, and what an interrupted run keeps; the programs themselves are stood in for."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.step_caching import (
    DOCUMENT,
    TABLE_BEGINS,
    TABLE_ENDS,
    WHOLE,
    document_table,
    measure,
    psnr_db,
    publish,
    summarise,
)

RESULT = Path(__file__).parents[2] / "benchmarks/results/step_caching.json"


class Side:
    """Gives grey clips, the lighter the fewer calls; one of its settings cannot be."""

    name = "stand-in"

    def __init__(self, stop_after: int = 10**6) -> None:
        self.made: list[tuple[str, int]] = []
        self.stop_after = stop_after

    def settings(self) -> list[str]:
        return [WHOLE, "half", "impossible"]

    def make(self, setting: str, prompt: str, seed: int) -> tuple[Any, dict[str, float]]:
        if len(self.made) == self.stop_after:
            raise KeyboardInterrupt
        self.made.append((setting, seed))
        if setting == "impossible":
            raise ValueError("needs another pipeline\nand more")
        level, calls = (100.0, 20) if setting == WHOLE else (110.0, 10)
        clip = np.full((3, 32, 32, 3), level, np.float32)
        return clip, {"calls": calls, "denoiser_s": calls / 10, "total_s": calls / 5}


def rows_of(side: Side, rows: list[dict[str, Any]] | None = None, count: int = 3) -> list[dict[str, Any]]:
    rows = [] if rows is None else rows
    measure([side], count, lambda _: None, rows)
    return rows


def test_each_setting_is_compared_with_the_whole_run_of_the_same_prompt() -> None:
    whole, half, impossible = summarise(rows_of(Side()))
    assert (whole["setting"], whole["prompts"], whole["speedup"], whole["psnr_db"]) == (WHOLE, 3, 1.0, 99.0)
    assert (half["calls"], half["speedup"], half["psnr_db"]) == (10, 2.0, round(20 * np.log10(25.5), 1))
    assert impossible["note"] == "ValueError: needs another pipeline" and "psnr_db" not in impossible


def test_what_cannot_be_is_tried_once() -> None:
    side = Side()
    rows_of(side)
    assert [setting for setting, _ in side.made].count("impossible") == 1


@pytest.mark.parametrize("stop_after", range(1, 7))
def test_an_interrupted_run_goes_on_to_the_same_rows(stop_after: int) -> None:
    rows: list[dict[str, Any]] = []
    with pytest.raises(KeyboardInterrupt):
        rows_of(Side(stop_after), rows)
    kept = copy.deepcopy(rows)
    again = rows_of(Side(), rows)
    assert again[: len(kept)] == kept and again == rows_of(Side())
    assert not (done := Side()).made and rows_of(done, rows) == again and not done.made


def test_publishing_replaces_the_table_and_nothing_else(tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    document.write_text(f"before\n{TABLE_BEGINS}old\n{TABLE_ENDS}after\n")
    for _ in range(2):
        publish(summarise(rows_of(Side())), document)
    lines = document.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after") and "old" not in lines
    assert "| stand-in | half | 10 | 1.00 | 2.00 | 28.1 / 28.1 | " in document.read_text()
    assert "| stand-in | impossible | cannot: ValueError: needs another pipeline | | | | |" in lines


@pytest.mark.skipif(not RESULT.exists(), reason="no result is committed yet")
def test_the_documents_table_is_that_of_the_committed_result() -> None:
    assert document_table(json.loads(RESULT.read_text())["summary"]) in DOCUMENT.read_text("utf-8")


def test_psnr_is_that_of_eight_bits() -> None:
    black, white = np.zeros((1, 2, 2, 3), np.float32), np.full((1, 2, 2, 3), 255.0, np.float32)
    assert psnr_db(white, black) == 0.0 and psnr_db(black, black) == 99.0
