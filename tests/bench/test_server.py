"""What the server adds to a video: both ways in turn, through a real server."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutoscope.request import RuntimeOptions
from mutoscope_bench.measuring import MeasurementError
from mutoscope_bench.options import Options
from mutoscope_bench.run import run
from mutoscope_bench.server import Way, in_turn, serving

pytest.importorskip("starlette")


def test_the_time_through_the_server_is_split_into_the_video_and_what_is_added() -> None:
    options = Options(
        cases=("server",), against=("openvino-genai",), precisions=("int8",),
        backends=("onnxruntime",), rounds=3, threads=1, quick=True,
    )  # fmt: skip
    result = run(options, lambda text: None)
    rows = {row.stage: row for row in result.rows}
    assert {row.implementation for row in result.rows} == {"mutoscope onnxruntime"}  # no peer has a server
    served, direct, added = (rows[stage].seconds for stage in ("served", "direct", "server_adds"))
    assert len(served) == len(direct) == 3 and min(served) > 0 and min(direct) > 0
    assert added == pytest.approx([one - other for one, other in zip(served, direct, strict=True)], abs=1e-4)
    assert rows["served"].peak_rss_bytes and rows["direct"].peak_rss_bytes is None


def test_the_two_ways_take_turns_and_must_make_the_same_file() -> None:
    order: list[str] = []
    seconds = {"direct": (1.0, "a"), "served": (1.25, "a")}

    def way(name: str) -> Way:
        def taken() -> tuple[float, str]:
            order.append(name)
            return seconds[name]

        return taken

    both = in_turn({name: way(name) for name in seconds})
    assert both() == both() == {"elapsed_s": 1.25, "stages": {"direct": 1.0, "server_adds": 0.25}}
    assert order == ["direct", "served", "served", "direct"]
    seconds["served"] = (1.0, "b")
    with pytest.raises(MeasurementError, match="another file"):
        both()


def test_a_server_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(MeasurementError, match=r"did not start: .*manifest\.json"),
        serving(str(tmp_path), RuntimeOptions()),
    ):
        raise AssertionError
