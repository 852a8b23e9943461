"""Peaks of whole runs from the figures of engines, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mutoscope.bundle.contract import TILED

from benchmarks.predicted_peaks import DECODER, peaks, read

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


def test_a_few_blocks_in_eight_bits_say_nothing_of_all(files: list[Path]) -> None:
    denoiser = {"role": "denoiser", "activation_bytes": 1}
    few = [
        engines(
            files[0].parent / f"{blocks}.json",
            [denoiser | {"weight_bytes": blocks}],
            blocks=blocks,
            model="14B",
            precision="fp8",
        )
        for blocks in (3, 4)
    ]
    with pytest.raises(ValueError, match=r"denoiser in fp8 was compiled with \[3, 4\] blocks alone"):
        list(peaks(read([*files, *few])))
