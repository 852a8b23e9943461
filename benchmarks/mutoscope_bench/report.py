"""A result as one HTML file: nothing is loaded from elsewhere, and no script is needed to read it.

Knows results and what a reader asks first. Knows nothing of how anything was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from mutoscope.errors import OutputError
from mutoscope.values.byte_sizes import format_bytes

from . import svg
from .cases import CASES
from .implementations import OURS
from .report_style import STYLE
from .result import RatioRow, Result, Row, Series
from .stages import STAGES
from .table import by_implementation, compared_of_ours, main_row, ratios_of, seconds_text

# The stretches of a whole run, in the order in which they happen, and how a reader knows them.
_STRETCHES = {name: stage.stretch for name, stage in STAGES.items() if stage.stretch}
_LINE_KINDS = 9  # colours of the style sheet for peers


def write_report(path: Path, result: Result) -> None:
    """Writes the page.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.write_text(html(result), encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def html(result: Result) -> str:
    """The page; well-formed as XML too."""
    cases = list(dict.fromkeys(row.case for row in result.rows))
    body = "\n".join([_head(result, cases), *(_case(result, case) for case in cases), _foot(result)])
    return (
        '<!DOCTYPE html>\n<html lang="en" xmlns="http://www.w3.org/1999/xhtml">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        '<meta name="color-scheme" content="light dark"/>\n'
        f"<title>Mutoscope bench, {escape(result.started)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _head(result: Result, cases: Sequence[str]) -> str:
    machine = result.machine
    gpus = ", ".join(machine.get("gpus") or ())
    facts = [
        str(machine["cpu"]),
        *([gpus] if gpus else []),
        f"{result.settings['threads']} threads",
        format_bytes(int(machine["memory_bytes"])),
        f"Mutoscope {result.mutoscope}",
        result.scenario,
        result.started.replace("T", " ").replace("+00:00", " UTC"),
    ]
    cards = "".join(card for case in cases if (card := _card(result, case)))
    noise = ""
    if not result.noise.quiet:
        reasons = "; ".join(result.noise.reasons)
        noise = (
            f'<p class="warning"><strong>The machine was too noisy:</strong> {escape(reasons)}. '
            "Small differences here may be chance.</p>"
        )
    if result.settings["quick"]:
        noise += (
            '<p class="warning"><strong>Quick run.</strong> Tiny sizes and one round: these figures mean nothing.</p>'
        )
    return (
        f'<header>\n<h1>Mutoscope bench</h1>\n<p class="facts">{" · ".join(map(escape, facts))}</p>\n'
        f'{noise}<div class="cards">{cards}</div>\n</header>'
    )


def _card(result: Result, case: str) -> str:
    ours = compared_of_ours(result, case)
    if ours is None or ours.median_s is None:
        return ""
    ratios = ratios_of(result, ours)
    if not ratios:
        big, small = seconds_text(ours.median_s), f"{ours.implementation} {ours.precision}"
    else:
        nearest = min(ratios, key=lambda ratio: ratio.ratio)
        peer = f"{nearest.against} {nearest.against_precision}"
        big = f"{nearest.ratio:.2f}\N{MULTIPLICATION SIGN}"
        small = f"{'faster than' if nearest.ratio >= 1 else 'the speed of'} {peer}, the fastest other"
    kind = "card behind" if ratios and min(ratio.ratio for ratio in ratios) < 1 else "card"
    error = "" if ours.relative_error is None else f", error {ours.relative_error:.2g}"
    ours_text = f"{seconds_text(ours.median_s)} in {ours.precision}{error}"
    return (
        f'<a class="{kind}" href="#{escape(case)}"><span class="name">{escape(case)}</span>'
        f'<span class="big">{escape(big)}</span><span>{escape(small)}</span>'
        f'<span class="quiet">{escape(ours_text)}</span></a>'
    )


def _case(result: Result, case: str) -> str:
    rows = [row for row in result.rows if row.case == case]
    measured = [row for row in rows if row.seconds]
    purpose = CASES[case].purpose if case in CASES else ""
    parts = [f'<section id="{escape(case)}">\n<h2>{escape(case)}</h2>\n<p class="purpose">{escape(purpose)}</p>']
    if measured:
        parts += _plots(result, case, measured)
        parts.append(_details(result, case, measured))
    notes = [row for row in rows if row.note]
    if notes:
        items = "".join(f"<li><strong>{escape(_name(row))}</strong>: {escape(row.note or '')}</li>" for row in notes)
        parts.append(f'<h3>Notes</h3>\n<ul class="notes">{items}</ul>')
    return "\n".join([*parts, "</section>"])


def _plots(result: Result, case: str, rows: Sequence[Row]) -> Iterator[str]:
    grouped = sorted(
        (group for group in by_implementation(rows).values() if main_row(group)),
        key=lambda group: getattr(main_row(group), "median_s", None) or 0.0,
    )
    there = {row.stage for row in rows}
    stacked = "whole_run" in there
    shown = [(f"part-{index}", text) for index, (stage, text) in enumerate(_STRETCHES.items()) if stage in there]
    yield _figure(
        "Time of each stage"
        if stacked
        else f"Time of one {getattr(main_row(grouped[0]), 'stage', '')}".replace("_", " "),
        svg.bars([_time_bar(group, result.reference.get(case)) for group in grouped], "time by implementation"),
        _legend(shown) if stacked else "",
        "Medians, warm. The whisker reaches to the 90th percentile.",
    )
    if "first_frame" in there:
        yield _first_frames(grouped)
    ours = compared_of_ours(result, case)
    ratios = [] if ours is None else sorted(ratios_of(result, ours), key=lambda ratio: ratio.ratio)
    if ours is not None and ratios:
        yield _figure(
            f"How many times faster {_name(ours)} is",
            svg.bars([_ratio_bar(ratio) for ratio in ratios], "ratio against peers", mark=1.0),
            "",
            "Each peer's time over ours, of runs taken in turn: median, with the least and the greatest round. "
            "Right of the line ours is faster.",
        )
    series = [one for one in result.series if one.case == case]
    kinds = _line_kinds(series)
    steps = [one for one in series if one.step_s]
    if steps:
        yield _figure(
            "Latency of each step",
            svg.lines(
                [svg.Line(_title(one), tuple(enumerate(one.step_s, start=1)), kinds[_title(one)]) for one in steps],
                "step latency over time",
                x_title="denoising step",
                y_title="time of a step",
                y_text=seconds_text,
            ),
            _legend([(f"{kinds[_title(one)]} swatch", _title(one)) for one in steps]),
            "",
        )
    memory = [one for one in series if len(one.memory) > 1]
    if memory:
        yield _memory(memory, kinds)


def _memory(series: Sequence[Series], kinds: Mapping[str, str]) -> str:
    lines = [svg.Line(_title(one), tuple((x, float(y)) for x, y in one.memory), kinds[_title(one)]) for one in series]
    return _figure(
        "Memory from the start of the process to the first result",
        svg.lines(
            lines,
            "memory over time",
            x_title="seconds since the process began (logarithmic)",
            y_title="resident memory",
            y_text=lambda value: format_bytes(int(value)).replace(".00", ""),
            log_x=True,
        ),
        _legend([(f"{line.kind} swatch", line.label) for line in lines]),
        "Importing, loading and the first run, which warms up or compiles. Mapped weights count.",
    )


def _time_bar(group: Sequence[Row], reference: str | None) -> svg.Bar:
    main = main_row(group)
    assert main is not None and main.median_s is not None
    medians = {row.stage: row.median_s for row in group if row.median_s is not None}
    ours = main.implementation.startswith(OURS)
    if main.stage == "whole_run":
        parts = tuple(
            svg.Part(medians[stage], f"part-{index}", f"{text}: {seconds_text(medians[stage])}")
            for index, (stage, text) in enumerate(_STRETCHES.items())
            if stage in medians
        )
    else:
        parts = (svg.Part(main.median_s, "ours" if ours else "peer", seconds_text(main.median_s)),)
    said = seconds_text(main.median_s)
    if _name(main) == reference:
        said += ", reference"
    elif main.relative_error is not None:
        said += f", error {main.relative_error:.2g}"
    low = sum(part.value for part in parts)
    high = None if main.p90_s is None else max(main.p90_s, low)
    return svg.Bar(_name(main), parts, said, strong=ours, low=low if high else None, high=high)


def _first_frames(groups: Sequence[Sequence[Row]]) -> str:
    found = {
        _name(row): row.median_s for group in groups for row in group if row.stage == "first_frame" and row.median_s
    }
    bars = []
    for name, seconds in sorted(found.items(), key=lambda each: each[1]):
        ours, said = name.startswith(OURS), seconds_text(seconds)
        bars.append(svg.Bar(name, (svg.Part(seconds, "ours" if ours else "peer", said),), said, strong=ours))
    return _figure(
        "Time to the first frame",
        svg.bars(bars, "time to the first frame by implementation"),
        "",
        "Medians, warm, from the request to the first frame in hand. What gives all frames at once has none earlier.",
    )


def _ratio_bar(ratio: RatioRow) -> svg.Bar:
    return svg.Bar(
        f"{ratio.against} {ratio.against_precision}",
        (svg.Part(ratio.ratio, "ours" if ratio.ratio >= 1 else "behind", f"{ratio.ratio:.2f} times"),),
        f"{ratio.ratio:.2f}\N{MULTIPLICATION SIGN}",
        low=ratio.low,
        high=ratio.high,
    )


def _line_kinds(series: Sequence[Series]) -> dict[str, str]:
    kinds: dict[str, str] = {}
    ours = peers = 0
    for one in series:
        if one.implementation.startswith(OURS):
            kinds[_title(one)] = f"line ours-{ours % 4}"
            ours += 1
        else:
            kinds[_title(one)] = f"line peer-{peers % _LINE_KINDS}"
            peers += 1
    return kinds


def _details(result: Result, case: str, rows: Sequence[Row]) -> str:
    heads = ["", "stage", "median", "p90", "p99", "least", "spread", "runs", "peak memory", "energy", "error", "PSNR"]
    lines = []
    for group in by_implementation(rows).values():
        for index, row in enumerate(sorted(group, key=lambda row: list(STAGES).index(row.stage or "import"))):
            cells = [
                _name(row) if index == 0 else "",
                (row.stage or "").replace("_", " "),
                *(
                    "" if value is None else seconds_text(value)
                    for value in (row.median_s, row.p90_s, row.p99_s, row.min_s)
                ),
                "" if row.spread is None or len(row.seconds) < 2 else f"{row.spread:.1%}",
                str(len(row.seconds)),
                "" if row.peak_rss_bytes is None else format_bytes(row.peak_rss_bytes),
                "" if row.energy_j is None else f"{row.energy_j:.1f} J",
                "" if row.relative_error is None else f"{row.relative_error:.2g}",
                "" if row.psnr_db is None else f"{row.psnr_db:.1f} dB",
            ]
            start = ' class="first"' if index == 0 else ""
            lines.append(f"<tr{start}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    reference = result.reference.get(case)
    said = f"Errors are against {escape(reference)}. " if reference else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return (
        f"<details><summary>Every figure</summary>\n<p>{said}A stage: {_glossary(rows)}.</p>\n"
        f'<div class="wide">{table}</div></details>'
    )


def _glossary(rows: Sequence[Row]) -> str:
    there = {row.stage for row in rows}
    meanings = {name: stage.meaning for name, stage in STAGES.items() if name in there}
    return "; ".join(f"<em>{name.replace('_', ' ')}</em>, {escape(text)}" for name, text in meanings.items())


def _foot(result: Result) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in result.machine["packages"].items())
    energy = str(result.settings["energy"])
    return (
        f"<footer><p>Python {escape(str(result.machine['python']))}, {escape(packages)}.</p>"
        f"<p>{escape(energy[:1].upper() + energy[1:])}.</p>"
        "<p>Every implementation is a process of its own, warmed up; runs are taken in turn, so that what slows the "
        "machine slows all. Compare times within this report, never with another machine's.</p></footer>"
    )


def _figure(title: str, plot: str, legend: str, caption: str) -> str:
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>\n<h3>{escape(title)}</h3>\n{legend}{plot}\n{said}</figure>"


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    return (
        '<p class="legend">'
        + "".join(f'<span><i class="{kind}"></i>{escape(text)}</span>' for kind, text in entries)
        + "</p>"
    )


def _name(row: Row) -> str:
    return f"{row.implementation} {row.precision}" if row.precision else row.implementation


def _title(series: Series) -> str:
    return f"{series.implementation} {series.precision}"
