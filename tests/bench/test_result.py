"""The JSON is what docs/benchmarking.md says, and nothing else is taken for it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
from mutoscope.errors import RequestError
from mutoscope_bench.result import RatioRow, Result, Row, Series, read_result, write_result
from mutoscope_bench.stages import STAGES

from tests.bench.results import result

DOCUMENT = Path(__file__).parents[2] / "docs/benchmarking.md"


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_result(tmp_path / "a.json", result())
    assert read_result(tmp_path / "a.json") == result()


def test_the_fields_that_others_read_are_there(tmp_path: Path) -> None:
    write_result(tmp_path / "a.json", result())
    content = json.loads((tmp_path / "a.json").read_text())
    wanted = {"case", "stage", "implementation", "precision", "median_s", "p90_s", "peak_rss_bytes", "relative_error"}
    assert all(wanted <= set(row) for row in content["rows"])
    assert all({"case", "stage", "against", "ratio"} <= set(row) for row in content["ratios"])
    assert content["machine"]["cpu"] == "a CPU"


@pytest.mark.parametrize("kind", [Result, Row, RatioRow, Series])
def test_every_field_is_documented(kind: type[msgspec.Struct]) -> None:
    documented = re.findall(r"^\| `([a-z0-9_]+)`", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    assert set(kind.__struct_fields__) <= set(documented)


def test_every_stage_is_documented() -> None:
    documented = re.findall(r"^\| `([a-z0-9_]+)`", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    assert set(STAGES) <= set(documented)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "no result of `mutoscope bench`"),
        ("not JSON", "no result of `mutoscope bench`"),
        ('{"schema_version": 99}', "version 99"),
        ('{"schema_version": 1}', "damaged"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(RequestError, match=message):
        read_result(tmp_path / "a.json")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        read_result(tmp_path / "none.json")
