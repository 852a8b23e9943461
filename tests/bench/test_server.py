"""What the server adds to a video: both ways in turn, through a real server."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutoscope import Pipeline
from mutoscope.request import OutputOptions
from mutoscope_bench import server
from mutoscope_bench.measuring import MeasurementError
from mutoscope_bench.options import Options
from mutoscope_bench.run import run
from mutoscope_bench.server import server_run

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


def test_the_two_ways_take_turns_and_must_make_the_same_file(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def way(name: str, sha256: str):  # type: ignore[no-untyped-def]
        def taken(*_: object) -> tuple[float, str]:
            order.append(name)
            return 1.0, sha256

        return taken

    class Work:
        request = {"prompt": "a circle"}  # noqa: RUF012

    monkeypatch.setattr(server, "_direct", way("direct", "a"))
    monkeypatch.setattr(server, "_served", way("served", "a"))
    both = server_run(Pipeline, Work, "")  # type: ignore[arg-type]
    assert [both()["elapsed_s"], both()["stages"]["server_adds"]] == [1.0, 0.0]
    assert order == ["direct", "served", "served", "direct"]
    monkeypatch.setattr(server, "_served", way("served", "b"))
    with pytest.raises(MeasurementError, match="another file"):
        both()


def test_a_server_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    options = Pipeline.load().options
    with pytest.raises(MeasurementError, match="did not start"), server.serving(str(tmp_path), options):
        raise AssertionError
    assert OutputOptions(sign="off") == server.OUTPUT  # as both ways write
