"""Peaks of whole runs from the figures of engines, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mutoscope.bundle.contract import TILED

from benchmarks.predicted_peaks import DECODER, peaks, read, weights_of_all_blocks

SHAPES = "480x832x81"


def engines(file: Path, rows: list[dict[str, Any]], **facts: Any) -> Path:
    common = {"shapes": SHAPES, "branches": 1, "tiles": "whole", "buffer_bytes": 10, "activation_bytes": 0}
    result = {"model": "1.3B", "blocks": None, "precision": "bf16", "target": "rtx40"} | facts
    file.write_text(json.dumps(result | {"engines": [common | row for row in rows]}))
    return file


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    encoder = {"role": "text_encoder", "activation_bytes": 300}
    denoiser = {"role": "denoiser", "activation_bytes": 5000}
    decoder = [{"role": role, "weight_bytes": 7, "activation_bytes": 90} for role in DECODER]
    tiles = [{"role": role, "tiles": "3 of 8x8", "weight_bytes": 7, "activation_bytes": 20} for role in TILED]
    return [
        engines(tmp_path / "a.json", [encoder | {"weight_bytes": 1200}], blocks=2),
        engines(tmp_path / "b.json", [encoder | {"weight_bytes": 1400}], blocks=4),
        engines(tmp_path / "c.json", [denoiser | {"weight_bytes": 4000}]),
        engines(
            tmp_path / "d.json", [denoiser | {"weight_bytes": 9, "activation_bytes": 6000}], blocks=2, target="rtx50"
        ),
        engines(tmp_path / "e.json", [*decoder, *tiles]),
    ]


def test_a_run_peaks_with_its_largest_stage(files: list[Path]) -> None:
    whole, in_tiles, other, _ = peaks(read(files))
    # 24 blocks of text encoder: 1000 for what is no block, and 100 for each.
    assert whole["stages"] == {
        "text_encoder": 3400 + 300 + 10,
        "denoiser": 4000 + 5000 + 10,
        "vae_decoder": 4 * (7 + 10) + 90,
    }
    assert whole["in_turns_bytes"] == 9010
    assert whole["all_loaded_bytes"] == 3400 + 4000 + 4 * 7 + 6 * 10 + 5000
    assert (whole["target"], whole["counted_as_for"], whole["blocks_compiled"]) == ("rtx40", [], 30)
    assert in_tiles["decoder"] == "3 of 8x8"
    assert in_tiles["stages"]["vae_decoder"] == 2 * (7 + 10) + 90  # of the features, which are whole
    # For the other target only the denoiser was compiled, and only two blocks of it.
    assert other["stages"]["denoiser"] == 4000 + 6000 + 10 and other["blocks_compiled"] == 2
    assert len(other["counted_as_for"]) == 5


def test_weights_of_a_part_alone_give_none_of_the_whole(files: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"text_encoder in bf16 was compiled with \[2\] blocks"):
        list(peaks(read([files[0], *files[2:]])))


def test_a_network_in_parts_holds_all_their_weights_and_the_activations_of_one(files: list[Path]) -> None:
    parts = [
        {"role": "denoiser", "part": f"{number} of 2", "weight_bytes": 2001, "activation_bytes": 4000 + number}
        for number in (1, 2)
    ]
    file = engines(files[0].parent / "f.json", [part | {"buffer_bytes": 30} for part in parts], model="14B")
    *_, row, _ = (row for row in peaks(read([*files, file])) if row["model"] == "14B")
    assert row["stages"]["denoiser"] == 4002 + 4002 + 30
    assert (row["parts"], row["blocks_compiled"]) == (2, 40)


def of_few_blocks(folder: Path, precision: str, weights: dict[int, int], model: str = "5B") -> list[Path]:
    denoiser = {"role": "denoiser", "activation_bytes": 5000}
    return [
        engines(
            folder / f"{precision}-{blocks}.json", [denoiser | {"weight_bytes": size}],
            blocks=blocks, precision=precision, model=model,
        )
        for blocks, size in weights.items()
    ]  # fmt: skip


def test_blocks_in_eight_bits_between_wide_ones_give_the_weights_of_all(tmp_path: Path) -> None:
    # 100 beside the blocks, of which a wide one has 20 and a narrow one 11. Of 3, one at each end is wide; of 30, two.
    wide = of_few_blocks(tmp_path, "bf16", {2: 140, 3: 160})
    narrow = of_few_blocks(tmp_path, "fp8", {3: 100 + 2 * 20 + 11})
    found = read([*wide, *narrow])
    assert weights_of_all_blocks(found, found[-1]) == 100 + 4 * 20 + 26 * 11


def test_a_denoiser_that_was_not_compiled_counts_as_the_one_that_it_is_like(files: list[Path], tmp_path: Path) -> None:
    denoiser = {"role": "denoiser", "weight_bytes": 7000, "activation_bytes": 5000}
    rows = list(peaks(read([*files, engines(tmp_path / "14b.json", [denoiser], model="14B")])))
    (row,) = (row for row in rows if (row["model"], row["decoder"]) == ("A14B", "whole"))
    assert (row["stages"]["denoiser"], row["counted_as"]) == (7000 + 5000 + 10, "14B")
    assert {row["counted_as"] for row in rows if row["model"] == "14B"} == {""}


def test_blocks_in_eight_bits_alone_say_nothing_of_all(files: list[Path], tmp_path: Path) -> None:
    few = of_few_blocks(tmp_path, "fp8", {3: 3, 4: 4}, "14B")
    with pytest.raises(ValueError, match=r"denoiser in bf16 was compiled with \[\] blocks alone"):
        list(peaks(read([*files, *few])))


def test_the_weights_that_few_blocks_give_are_those_of_all_that_were_compiled() -> None:
    folder = Path(__file__).parents[2] / "benchmarks/results/engine_memory"
    names = ["1.3b_2_blocks_bf16_rtx30", "1.3b_bf16_rtx40", "1.3b_3_blocks_fp8_rtx50"]
    *_, few = found = read([folder / f"{name}.json" for name in names])
    (whole, *_) = read([folder / "1.3b_fp8_rtx40.json"])
    assert weights_of_all_blocks(found, few) == pytest.approx(whole.weight_bytes, rel=0.002)


def test_a_picture_is_encoded_in_a_stage_of_its_own_by_the_vae_of_its_model(files: list[Path], tmp_path: Path) -> None:
    denoiser = {"role": "denoiser", "weight_bytes": 4000, "activation_bytes": 5000}
    of_vae = [{"role": role, "weight_bytes": 30} for role in (*DECODER, "vae_encoder_first")]
    file = engines(tmp_path / "5b.json", [denoiser, *of_vae], model="5B")
    (row,) = (row for row in peaks(read([*files, file])) if row["model"] == "5B")
    assert row["stages"]["vae_encoder"] == 30 + 10
    assert row["stages"]["vae_decoder"] == 4 * (30 + 10)
