"""What the switch of experts costs: the clip in all ways, in turn, and through a real bundle of two."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from mutoscope_bench.experts import experts_run
from mutoscope_bench.measuring import Answer, MeasurementError, Run
from mutoscope_bench.options import Options
from mutoscope_bench.run import run

from tests.bench.two_experts import bundle_of_two

SECONDS = {"planned": (3.0, 1.0), "limited": (3.5, 1.25), "kept": (2.0, 0.25)}  # of the whole run and the switch


def test_the_ways_take_turns_and_must_make_the_same_frames() -> None:
    order: list[str] = []
    made = dict.fromkeys(SECONDS, "a")

    def way(name: str) -> Run:
        def clip() -> Answer:
            order.append(name)
            whole, switch = SECONDS[name]
            return {
                "elapsed_s": whole,
                "sha256": made[name],
                "steps": [0.5],
                "stages": {"decode": 0.5, "switch": switch},
            }

        return clip

    all_ways = experts_run({name: way(name) for name in SECONDS})
    assert all_ways() == {
        "elapsed_s": 3.0, "sha256": "a", "steps": [0.5],
        "stages": {
            "decode": 0.5, "switch": 1.0, "limited_run": 3.5, "limited_switch": 1.25, "kept_run": 2.0,
            "kept_switch": 0.25,
        },
    }  # fmt: skip
    all_ways()
    assert order == [*SECONDS, *reversed(SECONDS)]
    made["kept"] = "b"
    with pytest.raises(MeasurementError, match="other frames"):
        all_ways()


def test_the_switch_takes_longer_where_the_second_expert_is_loaded_for_it(
    wan_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny-two-experts").mkdir()
    bundle_of_two(wan_bundle, tmp_path / "tiny-two-experts/bundle")  # which the case would otherwise make
    options = Options(
        cases=("experts",), precisions=("fp32",), backends=("onnxruntime",), rounds=1, quick=True, models=tmp_path
    )
    joules = count()
    monkeypatch.setattr("mutoscope_bench.energy.counters", lambda *_: {"package": float(next(joules))})
    rows = {row.stage: row for row in run(options, lambda text: None).rows}
    for way in ("", "limited_", "kept_"):
        assert 0 < rows[f"{way}switch"].seconds[0] < rows[f"{way or 'whole_'}run"].seconds[0]
    kept = rows["kept_switch"].seconds[0]
    assert kept < min(rows["switch"].seconds[0], rows["limited_switch"].seconds[0])
    assert rows["switch"].seconds[0] < rows["denoiser"].seconds[0]
    assert next(joules) >= 2 and rows["whole_run"].energy_j is None  # it would be that of all three
