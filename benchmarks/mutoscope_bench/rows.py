"""From what processes answered to the rows, ratios and series of a result.

Knows answers and results. Starts nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from .difference import difference
from .implementation import Variant
from .measuring import Answer, Worker
from .memory_trace import MemoryTrace
from .result import RatioRow, Row, Series, figures
from .stages import OF_SEVERAL_VIDEOS
from .timing import paired_ratio


@dataclass
class Runs:
    """What one variant's processes answered."""

    variant: Variant
    worker: Worker
    trace: MemoryTrace
    pid: int
    result: Path
    videos: int  # of each run
    cold_s: float | None
    cold_note: str | None
    answers: list[Answer] = field(default_factory=list)

    @property
    def first(self) -> Answer:
        """The answer of the first run, with the times of loading."""
        return self.worker.first


def elapsed_s(runs: Runs) -> list[float]:
    """Seconds of each run after the first."""
    return [answer["elapsed_s"] for answer in runs.answers]


def rows_of(case: str, runs: Runs, main_stage: str, import_s: Sequence[float]) -> list[Row]:
    """A row for each stage; the one of the main stage has what is true of the whole work."""
    first = runs.first
    samples: dict[str, Sequence[float]] = {
        "import": import_s,
        "load_cold": [] if runs.cold_s is None else [runs.cold_s],
        "load_warm": [first["load_s"]],
        "first_run": [first["first_s"]],
        **_stage_samples(runs.answers, main_stage),
    }
    notes = {"load_cold": runs.cold_note} | first.get("notes", {})
    facts = {stage: {"note": note} for stage, note in notes.items()} | {main_stage: _whole(runs)}
    return [
        Row(
            case=case,
            stage=stage,
            implementation=runs.variant.implementation,
            precision=runs.variant.precision,
            **figures(seconds),
            **facts.get(stage, {}),
            videos_per_s=_videos_per_s(runs, seconds) if stage in OF_SEVERAL_VIDEOS else None,
        )
        for stage, seconds in samples.items()
        if seconds
    ]


def _videos_per_s(runs: Runs, seconds: Sequence[float]) -> float:
    return round(runs.videos / statistics.median(seconds), 4)


def _whole(runs: Runs) -> dict[str, Any]:
    energies = [answer["energy_j"] for answer in runs.answers if answer["energy_j"] is not None]
    return {
        "peak_rss_bytes": max(answer["peak_rss_bytes"] for answer in runs.answers),
        "device_memory_bytes": runs.trace.device_bytes,
        "energy_j": round(statistics.median(energies), 3) if energies else None,
        "output_sha256": runs.first.get("sha256"),
        "note": runs.first.get("note"),
    }


def series_of(case: str, runs: Runs) -> Series:
    """What plots over time show of one variant."""
    steps = [answer["steps"] for answer in runs.answers if answer.get("steps")]
    return Series(
        case=case,
        implementation=runs.variant.implementation,
        precision=runs.variant.precision,
        step_s=tuple(round(statistics.median(each), 5) for each in zip(*steps, strict=True)) if steps else (),
        memory=runs.trace.points,
    )


def ratios_between(case: str, ours: Runs, our_answers: Sequence[Answer], peer: Runs, main_stage: str) -> list[RatioRow]:
    """Of every stage that both have. `our_answers` are those of the rounds that the peer was in."""
    count = min(len(our_answers), len(peer.answers))
    if not count:
        return []
    mine = _stage_samples(our_answers[:count], main_stage)
    theirs = _stage_samples(peer.answers[:count], main_stage)
    pairs = {stage: (theirs[stage], mine[stage]) for stage in mine if stage in theirs and stage != "step"}
    pairs["load_warm"] = [peer.first["load_s"]], [ours.first["load_s"]]
    ratios = {stage: paired_ratio(*seconds) for stage, seconds in pairs.items()}
    return [
        RatioRow(
            case=case,
            stage=stage,
            implementation=ours.variant.implementation,
            precision=ours.variant.precision,
            against=peer.variant.implementation,
            against_precision=peer.variant.precision,
            ratio=round(found.ratio, 4),
            low=round(found.low, 4),
            high=round(found.high, 4),
        )
        for stage, found in ratios.items()
    ]


def with_differences(
    rows: Sequence[Row], files: Mapping[Variant, Path], reference: Variant, main_stage: str
) -> list[Row]:
    """The same rows; those of the main stage say how far their output is from the reference's. `files` hold outputs."""
    expected = np.load(files[reference], mmap_mode="r")
    found = {
        variant: difference(np.load(file, mmap_mode="r"), expected)
        for variant, file in files.items()
        if variant != reference
    }

    def judged(row: Row) -> Row:
        given = found.get(Variant(row.implementation, row.precision or ""))
        if given is None or row.stage != main_stage:
            return row
        return msgspec.structs.replace(row, relative_error=given.relative_error, psnr_db=given.psnr_db)

    return [judged(row) for row in rows]


def _stage_samples(answers: Sequence[Answer], main_stage: str) -> dict[str, list[float]]:
    """Seconds by stage, one for each answer; of `step`, all steps of all answers."""
    samples: dict[str, list[float]] = {}
    for answer in answers:
        for stage, seconds in answer.get("stages", {}).items():
            samples.setdefault(stage, []).append(seconds)
        samples.setdefault("step", []).extend(answer.get("steps", ()))
        samples.setdefault(main_stage, []).append(answer["elapsed_s"])
    return {stage: seconds for stage, seconds in samples.items() if seconds}
