"""The planner over figures of engines, for limits around what the stages take."""

from __future__ import annotations

from typing import Any

import pytest
from mutoscope.bundle.contract import TILED

from benchmarks.predicted_peaks import DECODER, Engine
from benchmarks.predicted_plans import UNLIMITED, plans

GB = 10**9


def engine(role: str, weight_gb: float, activation_gb: float, **facts: Any) -> Engine:
    blocks = {"text_encoder": 24, "denoiser": 40}.get(role, 0)
    of_all = {
        "role": role, "model": "14B", "blocks": blocks, "all_blocks": blocks, "precision": "bf16", "target": "rtx40",
        "shapes": "480x832x81", "branches": 1, "tiles": "whole", "weight_bytes": int(weight_gb * GB),
        "activation_bytes": int(activation_gb * GB), "buffer_bytes": 0, "parts": 1,
    }  # fmt: skip
    return Engine(**(of_all | facts))


ENGINES = [
    engine("text_encoder", 8, 1),
    engine("text_encoder", 8, 1, branches=2),
    engine("denoiser", 16, 4),
    engine("denoiser", 16, 8, branches=2),
    *(engine(role, 0, 9 if role in TILED else 1) for role in DECODER),
    *(engine(role, 0, 2, tiles="3 of 8x8") for role in TILED),
]


def planned(limit: str, *, guidance: bool) -> dict[str, Any]:
    (row,) = (row for row in plans(ENGINES, [limit]) if (row["guidance"], row["limit"]) == (guidance, limit))
    return row


def test_with_room_every_stage_runs_whole() -> None:
    row = planned("25GB", guidance=True)
    assert {name: stage["name"] for name, stage in row["stages"].items()} == {
        "text_encoder": "whole",
        "denoiser": "whole",
        "vae_decoder": "whole",
    }
    assert row["peak_bytes"] == 24 * GB


def test_with_less_the_denoiser_takes_a_branch_in_a_call_before_it_streams() -> None:
    assert planned("20GB", guidance=True)["stages"]["denoiser"]["name"] == "1 branch in a call"
    stage = planned("18GB", guidance=False)["stages"]["denoiser"]
    assert (stage["name"], stage["streamed_bytes"]) == ("whole, weights streamed", 2 * GB)


def test_branches_take_turns_where_that_streams_fewer_bytes_in_a_step() -> None:
    stages = [planned(limit, guidance=True)["stages"]["denoiser"] for limit in ("19.5GB", "16GB", "11GB")]
    assert [(stage["name"], stage["streamed_bytes"], stage["calls_per_step"]) for stage in stages] == [
        ("1 branch in a call, weights streamed", GB // 2, 2),
        ("whole, weights streamed", 8 * GB, 1),  # as much as twice 4, in one call
        ("1 branch in a call, weights streamed", 9 * GB, 2),  # as 13 would be more than three quarters
    ]


def test_a_decoder_that_does_not_fit_whole_runs_in_tiles_and_an_encoder_streams() -> None:
    stages = planned("8GB", guidance=False)["stages"]
    assert stages["vae_decoder"]["name"] == "3 of 8x8"
    assert stages["text_encoder"]["streamed_bytes"] == 1 * GB


def test_what_does_not_fit_names_its_stage_and_the_least_that_it_takes() -> None:
    row = planned("7GB", guidance=False)
    # A quarter of the weights stays, and the activations.
    assert (row["refused"], row["least_bytes"]) == ("denoiser", 8 * GB)


@pytest.mark.parametrize("guidance", [True, False])
def test_every_limit_has_a_row_and_so_has_none(guidance: bool) -> None:
    rows = [row for row in plans(ENGINES, ["12GB", "24GB"]) if row["guidance"] == guidance]
    assert [row["limit"] for row in rows] == ["12GB", "24GB", UNLIMITED]
