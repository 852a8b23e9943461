"""A result as text for a terminal. Knows rows and columns. Knows nothing of how they were measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mutoscope.terminal import format_table
from mutoscope.values.byte_sizes import format_bytes

from .cases import CASES
from .comparison import Change
from .implementations import OURS
from .result import RatioRow, Result, Row
from .stages import COLUMNS, MAIN_STAGES, STAGES


def describe(result: Result) -> str:
    """Every case as a table, the ratios, and what a reader must know before believing them."""
    parts = [_case(result, name) for name in dict.fromkeys(row.case for row in result.rows)]
    notes = [f"scenario {result.scenario}, {result.settings['threads']} threads, on {result.machine['cpu']}"]
    if result.settings["energy"] != "measured, of the whole machine":
        notes.append(str(result.settings["energy"]))
    if result.settings["quick"]:
        notes.append("--quick: tiny sizes, one run; these figures mean nothing")
    if not result.noise.quiet:
        notes.append("THE MACHINE WAS TOO NOISY: " + "; ".join(result.noise.reasons) + ". Measure again on a quiet one")
    return "\n\n".join([*parts, "\n".join(notes)])


def describe_changes(changes: Sequence[Change]) -> str:
    """What got slower or larger beyond the noise, or that nothing did."""
    worse = [change for change in changes if change.worse]
    if not worse:
        return f"nothing got slower beyond the noise: {len(changes)} figures compared"
    rows = [
        [change.case, change.stage, change.implementation, change.precision or "", change.what,
         _amount(change, change.old), _amount(change, change.new), f"{change.ratio:.2f}x"]
        for change in worse
    ]  # fmt: skip
    names = ["case", "stage", "implementation", "precision", "what", "was", "is", "is/was"]
    return f"{len(worse)} of {len(changes)} figures got worse beyond the noise:\n{format_table(names, rows)}"


def main_row(rows: Iterable[Row]) -> Row | None:
    """The row that a case is about: its whole work."""
    by_stage = {row.stage: row for row in rows}
    return next((by_stage[stage] for stage in MAIN_STAGES if stage in by_stage), None)


def by_implementation(rows: Iterable[Row]) -> dict[tuple[str, str | None], list[Row]]:
    """The rows of each implementation and precision, in the order in which they first come."""
    grouped: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        grouped.setdefault((row.implementation, row.precision), []).append(row)
    return grouped


def compared_of_ours(result: Result, case: str) -> Row | None:
    """The one that ran beside the peers, because it was the fastest then; without peers, the fastest."""
    ours = [
        row
        for rows in by_implementation(row for row in result.rows if row.case == case).values()
        if (row := main_row(rows)) is not None and row.implementation.startswith(OURS)
    ]
    compared = [row for row in ours if ratios_of(result, row)]
    return min(compared or ours, key=lambda row: row.median_s or 0.0, default=None)


def ratios_of(result: Result, row: Row) -> list[RatioRow]:
    """A row of ours against every peer, in the same stage."""
    return [
        ratio
        for ratio in result.ratios
        if (ratio.case, ratio.stage, ratio.implementation, ratio.precision)
        == (row.case, row.stage, row.implementation, row.precision)
    ]


def seconds_text(seconds: float) -> str:
    """Three digits that matter, in ms below a second."""
    value, unit = (seconds * 1000, "ms") if seconds < 0.9995 else (seconds, "s")
    return f"{value:#.3g}".rstrip(".") + f" {unit}" if 0 < value < 999.5 else f"{value:.0f} {unit}"


def _case(result: Result, name: str) -> str:
    rows = [row for row in result.rows if row.case == name]
    measured = [row for row in rows if row.seconds]
    lines = [f"{name}: {CASES[name].purpose}" if name in CASES else name]
    if measured:
        lines.append(_times(result, name, measured))
    lines += [f"  {row.implementation}{f' {row.precision}' if row.precision else ''}: {row.note}"
              for row in rows if row.note]  # fmt: skip
    return "\n".join(lines)


def _times(result: Result, name: str, rows: Sequence[Row]) -> str:
    stages = {row.stage for row in rows}
    columns = [stage for stage in COLUMNS if stage in stages]
    ours = compared_of_ours(result, name)
    ratios = {} if ours is None else {
        (ratio.against, ratio.against_precision): ratio for ratio in ratios_of(result, ours)
    }  # fmt: skip
    throughput = any(row.videos_per_s for row in rows)
    stage_heads = [STAGES[stage].column for stage in columns]
    heads = ["", "", *stage_heads, *(["videos/h"] if throughput else []), "+-", "peak RSS", "error", "PSNR"]
    if ratios:
        heads.append(f"ours ({ours.precision if ours else ''}) is faster by")
    lines = []
    for (implementation, precision), of_one in by_implementation(rows).items():
        main = main_row(of_one)
        times = {row.stage: seconds_text(row.median_s) for row in of_one if row.median_s is not None}
        line = [implementation, precision or "", *(times.get(stage, "") for stage in columns)]
        if throughput:
            line.append(f"{3600 * main.videos_per_s:.0f}" if main and main.videos_per_s else "")
        line += list(_facts(main, result.reference.get(name)))
        if ratios:
            found = ratios.get((implementation, precision or ""))
            line.append(f"{found.ratio:.2f}x ({found.low:.2f} to {found.high:.2f})" if found else "")
        lines.append(line)
    return format_table(heads, lines)


def _facts(row: Row | None, reference: str | None) -> Iterator[str]:
    if row is None:
        yield from ("", "", "", "")
        return
    is_reference = f"{row.implementation} {row.precision}" == reference
    yield "" if row.spread is None or len(row.seconds) < 2 else f"{row.spread:.0%}"
    yield "" if row.peak_rss_bytes is None else format_bytes(row.peak_rss_bytes)
    yield "reference" if is_reference else "" if row.relative_error is None else f"{row.relative_error:.2g}"
    yield "" if row.psnr_db is None else f"{row.psnr_db:.1f} dB"


def _amount(change: Change, value: float) -> str:
    return seconds_text(value) if change.what == "time" else format_bytes(int(value))
