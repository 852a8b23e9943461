"""Plots as SVG: bars, stacked bars, ratios, lines. Knows numbers and labels. Knows nothing of benchmarks.

Colours are classes, which the page's style sheet fills in for light and dark. All are 820 units wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 820
_LABELS = 300  # for the names left of bars
_VALUES = 150  # for the text right of them
_ROW = 27
_BAR = 17
_PLOT = WIDTH - _LABELS - _VALUES


@dataclass(frozen=True)
class Part:
    """A stretch of a bar. `kind` is a class of the style sheet; `title` appears when it is pointed at."""

    value: float
    kind: str
    title: str


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart."""

    label: str
    parts: tuple[Part, ...]
    value: str  # what is written behind it
    strong: bool = False
    low: float | None = None  # a whisker from here
    high: float | None = None  # to here


@dataclass(frozen=True)
class Line:
    """A line of a plot. `kind` is a class of the style sheet."""

    label: str
    points: tuple[tuple[float, float], ...]
    kind: str


def bars(rows: Sequence[Bar], title: str, *, mark: float | None = None) -> str:
    """Horizontal bars from zero, one below the other. `mark` draws a line at a value, such as 1 for ratios."""
    most = max([max(sum(part.value for part in row.parts), row.high or 0.0) for row in rows] + [mark or 0.0]) or 1.0

    def x(value: float) -> float:
        return _LABELS + value / most * _PLOT

    height = _ROW * len(rows) + 8
    drawn: list[str] = []
    if mark is not None:
        drawn.append(f'<line class="mark" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="0" y2="{height}"/>')
    for index, row in enumerate(rows):
        drawn += _bar(row, index * _ROW + 4, x)
    return _svg(height, title, drawn)


def _bar(row: Bar, top: float, x: Callable[[float], float]) -> Iterator[str]:
    middle = top + _BAR / 2 + 4.5
    strong = " strong" if row.strong else ""
    yield _text(_LABELS - 10, middle, row.label, f"label end{strong}")
    start = 0.0
    for part in row.parts:
        left, width = x(start), max(x(start + part.value) - x(start), 0.6)
        yield (
            f'<rect class="{part.kind}" x="{left:.1f}" y="{top}" width="{width:.1f}" height="{_BAR}">'
            f"<title>{escape(part.title)}</title></rect>"
        )
        start += part.value
    end = start
    if row.low is not None and row.high is not None:
        y = top + _BAR / 2
        yield f'<path class="whisker" d="M{x(row.low):.1f} {y}H{x(row.high):.1f}M{x(row.low):.1f} {y - 4}v8M{x(row.high):.1f} {y - 4}v8"/>'  # noqa: E501
        end = max(end, row.high)
    yield _text(x(end) + 8, middle, row.value, f"value{strong}")


def lines(
    rows: Sequence[Line],
    title: str,
    *,
    x_title: str,
    y_title: str,
    y_text: Callable[[float], str],
    log_x: bool = False,
) -> str:
    """Lines over an axis that may be logarithmic; the other begins at zero."""
    height, left, right, top, bottom = 250, 76, 14, 24, 42
    values = [point for row in rows for point in row.points if not log_x or point[0] > 0]
    least, most = min(x for x, _ in values), max(x for x, _ in values)
    if most <= least:
        most = least + 1
    y_ticks = _ticks(max(y for _, y in values))

    def x_at(value: float) -> float:
        share = math.log(value / least) / math.log(most / least) if log_x else (value - least) / (most - least)
        return left + share * (WIDTH - left - right)

    def y_at(value: float) -> float:
        return height - bottom - value / y_ticks[-1] * (height - top - bottom)

    drawn = []
    for tick in y_ticks:
        y = y_at(tick)
        drawn.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(_text(left - 8, y + 4, y_text(tick), "tick end"))
    for tick in _log_ticks(least, most) if log_x else _whole_ticks(least, most):
        drawn.append(_text(x_at(tick), height - bottom + 17, f"{tick:g}", "tick middle"))
    drawn.append(_text(left + (WIDTH - left - right) / 2, height - 6, x_title, "axis middle"))
    drawn.append(_text(left, 12, y_title, "axis"))
    for row in rows:
        points = [(x_at(x), y_at(y)) for x, y in row.points if not log_x or x > 0]
        if len(points) == 1:
            drawn.append(f'<circle class="{row.kind} dot" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3"/>')
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        drawn.append(f'<polyline class="{row.kind}" points="{path}"><title>{escape(row.label)}</title></polyline>')
    return _svg(height, title, drawn)


def _svg(height: float, title: str, drawn: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(drawn)}</svg>'
    )


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _ticks(most: float) -> list[float]:
    """From zero in steps of 1, 2 or 5 to at least `most`, four or five of them."""
    step = 10 ** math.floor(math.log10(most / 4)) if most > 0 else 1.0
    step = next(step * factor for factor in (1, 2, 5, 10) if step * factor * 5 >= most)
    return [index * step for index in range(math.ceil(most / step - 1e-9) + 1)]


def _log_ticks(least: float, most: float) -> list[float]:
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    return [tick for power in powers for digit in (1, 3) if least <= (tick := digit * 10.0**power) <= most]


def _whole_ticks(least: float, most: float) -> list[int]:
    step = max(1, round((most - least) / 10))
    return list(range(math.ceil(least), math.floor(most) + 1, step))
