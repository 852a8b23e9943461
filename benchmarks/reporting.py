"""What the scripts of this folder share: flags, the columns of their tables, and results as JSON.

Knows answers of `mutoscope_bench.measuring`. Knows nothing of what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mutoscope.terminal import format_table
from mutoscope_bench.machine_facts import describe
from mutoscope_bench.measuring import Answer
from mutoscope_engines.system.machine import usable_cores


def summary(first: Answer, answers: Sequence[Answer]) -> Answer:
    """The columns that all tables share; seconds to four digits."""
    seconds = [answer["elapsed_s"] for answer in answers]
    last = answers[-1] if answers else first
    return {
        "median_s": round(statistics.median(seconds), 4) if seconds else None,
        "min_s": round(min(seconds), 4) if seconds else None,
        "runs": len(seconds),
        "load_s": round(first["load_s"], 4),
        "first_s": round(first["first_s"], 4),
        "peak_rss_bytes": last["peak_rss_bytes"],
    }


def arguments(description: str | None, default_rounds: int) -> argparse.ArgumentParser:
    """The flags that all these benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one run: shows that it works, no more")
    parser.add_argument("--rounds", type=int, default=default_rounds, help="measured runs of each, after a warm-up")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--checkpoint", type=Path, default=BUILTIN_CHECKPOINT, help="default: the built-in model's")
    parser.add_argument("--bundle", type=Path, default=BUILTIN_BUNDLE, help="its bundle; default: the built-in one")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    return parser


_REPOSITORY = Path(__file__).parents[1]
BUILTIN_CHECKPOINT = _REPOSITORY / "export/mutoscope_export/demo/checkpoint"
BUILTIN_BUNDLE = _REPOSITORY / "runtime/mutoscope/builtin/bundle"


def write_result(output: Path | None, rows: Iterable[Answer], **facts: Any) -> None:
    """Prints the rows as a table and writes them with the machine and other facts."""
    rows = list(rows)
    print(table(rows))
    if output:
        load = {"load_average_1_5_15_minutes": os.getloadavg()}
        output.write_text(json.dumps({"machine": describe(), **load, **facts, "rows": rows}, indent=1) + "\n")


def table(rows: Sequence[Answer]) -> str:
    """The rows aligned for a terminal; bytes in MB, nested values left to the JSON."""
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, dict)))
    names.sort(key=lambda name: name == "note")  # last, for it is long
    cells = [[_cell(name, row.get(name)) for name in names] for row in rows]
    return format_table([name.replace("_bytes", "_MB") for name in names], cells)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name.endswith("_bytes"):
        return f"{value / 1e6:.1f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
