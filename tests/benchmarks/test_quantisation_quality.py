"""The committed table is that of the committed result, and the figures are what they say."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import quantisation_quality as quality

REPOSITORY = Path(__file__).parents[2]
RESULT = REPOSITORY / "benchmarks/results/quantisation_quality.json"
RIGHT = {"colour": 1.0, "background": 0.5, "motion": 1.0, "shape": 0.25, "n": 4}
ROWS = [
    {"name": "fp32", "relative_l2": 0.0, "psnr_db_median": None, "psnr_db_least": None, "right": RIGHT,
     "all_right": 0.25, "lost": 0, "gained": 0, "p": 1.0},
    {"name": "fp8: all", "default": True, "linears": 8, "attentions": 1, "relative_l2": 0.0213, "psnr_db_median": 30.04,
     "psnr_db_least": 21.0, "right": RIGHT, "all_right": 0.25, "lost": 1, "gained": 1, "p": 1.0},
]  # fmt: skip


def test_the_documents_table_is_that_of_the_committed_result() -> None:
    if not RESULT.exists():
        pytest.skip("no result is here yet")
    assert quality.table(json.loads(RESULT.read_text())) in quality.DOCUMENT.read_text("utf-8")


def test_a_row_of_the_table_reads_as_its_result() -> None:
    lines = quality.table({"rows": ROWS}).splitlines()
    assert lines[2] == "| fp32 |  |  |  | 0 | same / same | 100.0% | 50.0% | 100.0% | 25.0% | 25.0% | 0 / 0 | 1 |"
    assert lines[3].startswith("| **fp8: all** | 8 |  | 1 | 2.13% | 30.0 / 21.0 | ")
    assert len({line.count("|") for line in lines}) == 1


def test_publishing_replaces_the_table_and_nothing_else(tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    document.write_text(f"before\n{quality.TABLE_BEGINS}old\n{quality.TABLE_ENDS}after\n")
    for _ in range(2):
        quality.publish({"rows": ROWS}, document)
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert text.count("fp8: all") == 1
    assert quality.TABLE_BEGINS in quality.DOCUMENT.read_text(
        "utf-8"
    ) and quality.TABLE_ENDS in quality.DOCUMENT.read_text("utf-8")


def test_rows_that_are_measured_later_join_a_result_of_the_same_weights_and_prompts() -> None:
    earlier = {"machine": "first", "transformer_sha256": "a", "count": 96, "rows": [*ROWS, {"name": "nvfp4: old"}]}
    later = earlier | {"machine": "second", "rows": [ROWS[0], {"name": "nvfp4: new"}]}
    joined = quality.with_rows_of(earlier, later, "nvfp4")
    assert [row["name"] for row in joined["rows"]] == ["fp32", "fp8: all", "nvfp4: new"]
    assert joined["machine"] == "first"
    for fact, value in (("transformer_sha256", "b"), ("count", 24)):
        with pytest.raises(ValueError, match=f"{fact} of the earlier result is .* measure all rows again"):
            quality.with_rows_of(earlier, later | {fact: value}, "nvfp4")


def test_the_psnr_of_equal_clips_has_no_number_in_json() -> None:
    clip = np.zeros((2, 4, 4, 3), np.uint8)
    assert quality.finite(quality.psnr_db(clip, clip)) is None


@pytest.mark.parametrize(("lost", "gained", "p"), [(0, 0, 1.0), (3, 3, 1.0), (6, 0, 2 / 64), (1, 8, 20 / 512)])
def test_the_sign_test_is_that_of_a_fair_coin(lost: int, gained: int, p: float) -> None:
    assert quality.sign_test(lost, gained) == quality.sign_test(gained, lost) == pytest.approx(p)


def test_a_clip_is_made_once(tmp_path: Path) -> None:
    class Candidate:
        made = 0

        def generate(self, prompt: str, *, seed: int) -> SimpleNamespace:
            self.made += 1
            return SimpleNamespace(frames=np.full((1, 2, 2, 3), seed, np.uint8))

    candidate = Candidate()
    for _ in range(2):
        frames = quality.kept(tmp_path / "clips" / "7.npy", "a red circle", 7, candidate)  # type: ignore[arg-type]
        assert frames.max() == 7
    assert candidate.made == 1 and [file.name for file in (tmp_path / "clips").iterdir()] == ["7.npy"]


def test_frames_that_are_given_have_no_part_in_the_error() -> None:
    velocity = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    recorded = SimpleNamespace(inputs={"given": torch.tensor([1.0, 0.0, 0.0])})
    np.testing.assert_array_equal(quality.asked(velocity, recorded), velocity[:, 1:])
    for inputs in ({"given": torch.zeros(3)}, {}):
        np.testing.assert_array_equal(quality.asked(velocity, SimpleNamespace(inputs=inputs)), velocity)
