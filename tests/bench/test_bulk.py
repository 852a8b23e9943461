"""Videos in bulk: the batch and the loop make the same files, and both are counted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from mutoscope import Pipeline
from mutoscope_bench.cases import PROMPT, QUICK_REQUESTS, QUICK_VIDEOS, SEED
from mutoscope_bench.options import Options
from mutoscope_bench.run import run


def test_videos_in_bulk_are_those_of_a_loop_and_both_are_counted(tmp_path: Path) -> None:
    options = Options(
        cases=("bulk",), against=("openvino-genai",), precisions=("fp32",), backends=("onnxruntime",), rounds=2,
        quick=True,
    )  # fmt: skip
    found = run(options, lambda text: None)
    assert {row.implementation for row in found.rows} == {"mutoscope onnxruntime"}
    rows = {row.stage: row for row in found.rows}
    for stage in ("batch", "loop"):
        assert len(rows[stage].seconds) == 2
        assert rows[stage].videos_per_s == pytest.approx(QUICK_VIDEOS / (rows[stage].median_s or 0.0), rel=1e-2)
    files = hashlib.sha256()
    with Pipeline.load(backend="onnxruntime", precision="fp32", threads=1) as pipeline:
        for seed in range(SEED, SEED + QUICK_VIDEOS):
            video = pipeline.generate(PROMPT, seed=seed, **QUICK_REQUESTS["bulk"])
            files.update(video.save(tmp_path / "one.mp4", sign="off").read_bytes())
    assert rows["batch"].output_sha256 == files.hexdigest()
