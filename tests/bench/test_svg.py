"""Plots show their values."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from mutoscope_bench import svg

SVG = "{http://www.w3.org/2000/svg}"


def test_bars_are_as_long_as_their_values() -> None:
    rows = [svg.Bar(str(value), (svg.Part(value, "ours", ""),), "") for value in (1.0, 2.0)]
    short, long = (
        float(rect.get("width") or 0) for rect in ElementTree.fromstring(svg.bars(rows, "")).iter(f"{SVG}rect")
    )
    assert long == pytest.approx(2 * short, rel=0.01)


@pytest.mark.parametrize("most", [0.013, 0.9, 1.0, 47.0, 2.5e9])
def test_an_axis_reaches_its_largest_value(most: float) -> None:
    line = svg.Line("a", ((1.0, 0.0), (2.0, most)), "ours")
    page = ElementTree.fromstring(svg.lines([line], "", x_title="", y_title="", y_text=str))
    heights = [float(point.split(",")[1]) for point in (page.find(f"{SVG}polyline").get("points") or "").split()]  # type: ignore[union-attr]
    assert 24 <= heights[1] < heights[0]
