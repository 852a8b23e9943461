"""The clips are what they are said to be, each attack is made, and the committed result holds what the docs promise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import watermark_robustness as benchmark
from tests.runtime.provenance.pictures import landscape

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks/results/watermark_robustness.json"
DOCUMENT = ROOT / "docs/provenance.md"


def test_a_window_moves_over_a_picture_by_one_pixel_down_and_two_to_the_right() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    clip = benchmark.pan(picture, 64, 96, 3)
    assert clip.shape == (3, 64, 96, 3)
    assert np.array_equal(clip[0, 1:, 2:], clip[1, :-1, :-2]) and np.array_equal(clip[1, 1:, 2:], clip[2, :-1, :-2])


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("none", (256, 320)),
        ("x264 crf 28", (256, 320)),
        ("x0.75, x264 crf 23", (192, 240)),
        ("x264 crf 28, x0.75, x264 crf 28", (192, 240)),
        ("5 % of each edge cut off", (232, 288)),
    ],
)
def test_an_attack_scales_and_cuts_as_its_name_says(name: str, size: tuple[int, int]) -> None:
    clip = landscape(2)
    attack = next(attack for attack in benchmark.ATTACKS if attack.name == name)
    result = attack.apply(clip)
    assert result.shape == (2, *size, 3)
    assert np.array_equal(result, clip) == (name == "none")


def test_a_summary_counts_clips_by_size_and_kind() -> None:
    facts = {"psnr_db": 40.0, "worst_frame_psnr_db": 39.0, "write_ms": 2.0, "read_ms": 1.0}
    rows = [
        {"source": source, "size": [256, 256], "bits": {"none": bits}} | facts
        for source, bits in (("photograph: a", 64), ("photograph: b", 49), ("built-in: c", 50))
    ]
    photographs, built_in = benchmark.summarise(rows)
    assert (photographs["mean_bits"], photographs["least_bits"], photographs["found"]) == (56.5, 49, 1)
    assert (built_in["size"], built_in["clips"], built_in["found"], built_in["count"]) == ("256x256", "built-in", 1, 1)


def test_the_committed_result_holds_what_the_documents_promise() -> None:
    result = json.loads(RESULT.read_text())
    for row in result["summary"]:
        if row["attack"] in ("none", "x264 crf 23"):
            assert row["found"] >= row["count"] - 1, row  # a plain clip may hide too little
        assert row["least_psnr_db"] >= 35.8, row
    for attack in benchmark.ATTACKS:
        cells = []
        for height, width in benchmark.SIZES:
            own = [row["bits"][attack.name] for row in result["rows"] if row["size"] == [height, width]]
            cells.append(f"{sum(bits >= 50 for bits in own)} ({min(own)})")
        assert f"| {attack.name} | {' | '.join(cells)} |" in DOCUMENT.read_text("utf-8")
    alarms = result["false_alarms"]
    assert alarms["found"] == 0 and alarms["share_from_44_bits"] < alarms["expected_share_from_44_bits"]
    assert {attack.name for attack in benchmark.ATTACKS} == {row["attack"] for row in result["summary"]}
