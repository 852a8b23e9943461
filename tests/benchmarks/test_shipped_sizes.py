"""Disk space of folders that are shipped, from engines of few blocks against engines of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.predicted_peaks import Engine, matching, read
from benchmarks.shipped_sizes import FOLDERS, TARGETS, engine_bytes, sizes

COMPILED = Path(__file__).parents[2] / "benchmarks/results/engine_memory"


def engine(blocks: int, all_blocks: int, **facts: Any) -> Engine:
    made = {
        "role": "denoiser", "model": "1.3B", "precision": "fp8", "target": "rtx40", "shapes": "480x832x81",
        "branches": 2, "tiles": "whole", "weight_bytes": 100, "activation_bytes": 0, "buffer_bytes": 0, "parts": 1,
        "engine_bytes": 140,
    }  # fmt: skip
    return Engine(**(made | facts), blocks=blocks, all_blocks=all_blocks)


def compiled(*names: str, **wanted: Any) -> list[Engine]:
    return matching(read([COMPILED / f"{name}.json" for name in names]), **wanted)


def test_what_an_engine_has_beside_its_weights_grows_with_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.predicted_peaks.counted", lambda model, role, precision: 1000)
    few = [engine(2, 30), engine(4, 30, weight_bytes=120, engine_bytes=166)]
    assert engine_bytes(few, few) == 1000 + 40 + 28 * 3


def test_an_engine_of_all_blocks_is_as_large_as_it_is() -> None:
    assert engine_bytes([], [engine(30, 30)]) == 140


def test_few_blocks_give_the_disk_space_of_all_that_were_compiled() -> None:
    few = compiled("1.3b_3_blocks_fp8", "1.3b_4_blocks_fp8", target="rtx40", branches=2)
    (whole,) = compiled("1.3b_fp8_rtx40", branches=2, shapes="480x832x81")
    assert engine_bytes(few, few) == pytest.approx(whole.engine_bytes, rel=0.001)


def test_engines_for_one_target_are_as_large_as_for_another_and_for_both() -> None:
    found: dict[tuple[Any, ...], list[int]] = {}
    for each in compiled("1.3b_3_blocks_fp8", "1.3b_4_blocks_fp8", "vae_bf16"):
        found.setdefault((each.role, each.blocks, each.branches), []).append(each.engine_bytes)
    assert {len(some) for some in found.values()} == {len(TARGETS)}
    assert all(max(some) / min(some) < 1.001 for some in found.values())


def test_a_graph_is_hardly_larger_than_the_weights_of_its_engine() -> None:
    for each in compiled("1.3b_3_blocks_fp8", "1.3b_4_blocks_fp8", "vae_bf16"):
        assert each.graph_bytes == pytest.approx(each.weight_bytes, rel=0.002)


def test_every_graph_of_every_folder_has_a_row_that_says_for_which_target_it_was_compiled() -> None:
    rows = list(sizes(read(sorted(COMPILED.glob("*.json")))))
    assert {(row["model"], row["target"]) for row in rows} == {(name, target) for name in FOLDERS for target in TARGETS}
    counted = {row["role"] for row in rows if row["counted_as_for"] != row["target"] and row["model"] == "1.3B"}
    assert counted == {"text_encoder"}


def test_one_number_of_blocks_alone_is_refused() -> None:
    few = engine(4, 24, role="text_encoder", precision="bf16")
    with pytest.raises(ValueError, match=r"text_encoder of 1.3B was compiled for rtx40 and rtx40 with \[4\] blocks"):
        list(sizes([few]))
