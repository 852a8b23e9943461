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
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    counted = {"text_encoder": 3400, "denoiser": 7777}
    monkeypatch.setattr("benchmarks.predicted_peaks.counted", lambda model, role, precision: counted[role])
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
    # The weights of the text encoder are counted, because 2 and 4 blocks of 24 were compiled.
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


def test_activations_of_one_number_of_blocks_give_none_of_all(files: list[Path]) -> None:
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


def test_a_denoiser_that_was_not_compiled_counts_as_the_one_that_it_is_like(files: list[Path], tmp_path: Path) -> None:
    denoiser = {"role": "denoiser", "weight_bytes": 7000, "activation_bytes": 5000}
    rows = list(peaks(read([*files, engines(tmp_path / "14b.json", [denoiser], model="14B")])))
    (row,) = (row for row in rows if (row["model"], row["decoder"]) == ("A14B", "whole"))
    assert (row["stages"]["denoiser"], row["counted_as"]) == (7000 + 5000 + 10, "14B")
    assert {row["counted_as"] for row in rows if row["model"] == "14B"} == {""}


def test_the_weights_that_few_blocks_give_are_those_of_all_that_were_compiled() -> None:
    folder = Path(__file__).parents[2] / "benchmarks/results/engine_memory"
    *_, few = found = read([folder / "1.3b_3_blocks_fp8_rtx50.json"])
    (whole, *_) = read([folder / "1.3b_fp8_rtx40.json"])
    assert weights_of_all_blocks(found, few) == pytest.approx(whole.weight_bytes, rel=0.001)


def test_a_picture_is_encoded_in_a_stage_of_its_own_by_the_vae_of_its_model(files: list[Path], tmp_path: Path) -> None:
    denoiser = {"role": "denoiser", "weight_bytes": 4000, "activation_bytes": 5000}
    of_vae = [{"role": role, "weight_bytes": 30} for role in (*DECODER, "vae_encoder_first")]
    file = engines(tmp_path / "5b.json", [denoiser, *of_vae], model="5B")
    (row,) = (row for row in peaks(read([*files, file])) if row["model"] == "5B")
    assert row["stages"]["vae_encoder"] == 30 + 10
    assert row["stages"]["vae_decoder"] == 4 * (30 + 10)


def test_the_form_that_loras_change_has_rows_of_its_own_with_a_and_b_of_all_blocks(files: list[Path]) -> None:
    denoiser = {"role": "denoiser", "weight_bytes": 300, "activation_bytes": 5100}
    changed = engines(files[0].parent / "2_blocks_lora.json", [denoiser], blocks=2, lora_rank=64)
    plain = list(peaks(read(files)))
    rows = list(peaks(read([*files, changed])))
    assert [row for row in rows if row["lora_rank"] == 0] == plain
    whole, in_tiles = (row for row in rows if row["lora_rank"])
    # Of 1536 channels: queries, keys, values and outputs twice, and 8960 between the two of the feed-forward.
    rows_of_a_block = 8 * (1536 + 1536) + 2 * (1536 + 8960)
    assert whole["stages"]["denoiser"] == 4000 + 5100 + 10 + 28 * rows_of_a_block * 64 * 2
    assert (whole["lora_rank"], whole["blocks_compiled"]) == (64, 2)
    assert in_tiles["stages"]["denoiser"] == whole["stages"]["denoiser"]


def test_a_file_may_have_engines_for_several_targets(files: list[Path]) -> None:
    denoiser = {"role": "denoiser", "weight_bytes": 300}
    rows = [
        denoiser | {"target": "rtx30", "activation_bytes": 1},
        denoiser | {"target": "rtx50", "activation_bytes": 2},
    ]
    found = read([engines(files[0].parent / "several.json", rows)])
    assert [(each.target, each.activation_bytes, each.parts) for each in found] == [("rtx30", 1, 1), ("rtx50", 2, 1)]


def test_the_encoder_of_pictures_as_tokens_is_a_stage_of_its_own(files: list[Path]) -> None:
    rows = [{"role": "denoiser", "weight_bytes": 300}, {"role": "image_encoder", "weight_bytes": 40}]
    rows += [{"role": f"vae_encoder_{call}", "weight_bytes": 30} for call in ("first", "next")]
    file = engines(files[0].parent / "i2v.json", rows, model="I2V-14B")
    row, _ = (row for row in peaks(read([*files, file])) if row["model"] == "I2V-14B")
    assert row["stages"]["image_encoder"] == 40 + 10
    assert row["stages"]["vae_encoder"] == 2 * (30 + 10)


def test_a_model_whose_denoiser_was_compiled_counts_as_another_in_its_own_precisions_alone(files: list[Path]) -> None:
    folder, denoiser = files[0].parent, {"role": "denoiser", "weight_bytes": 7000, "activation_bytes": 5000}
    encoder = [{"role": f"vae_encoder_{call}", "weight_bytes": 30} for call in ("first", "next")]
    parts = [denoiser | {"part": f"{number} of 2"} for number in (1, 2)]
    own = engines(folder / "own.json", [denoiser, *encoder], model="I2V-A14B")
    like = [engines(folder / "14b.json", [denoiser], model="14B"), engines(folder / "parts.json", parts, model="14B")]
    like += [engines(folder / "fp8.json", [denoiser], model="14B", precision="fp8")]
    rows = [row for row in peaks(read([*files, own, *like])) if (row["model"], row["decoder"]) == ("I2V-A14B", "whole")]
    assert [(row["precision"], row["parts"], row["counted_as"]) for row in rows] == [
        ("bf16", 1, ""),
        ("bf16", 2, "14B"),
    ]
