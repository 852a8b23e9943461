"""The result of a benchmark, as the JSON has it: every field, strict on reading. docs/benchmarking.md says the same.

Knows names, types and units. Knows nothing of how anything is measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from mutoscope.errors import OutputError, RequestError

from .timing import percentile, spread

SCHEMA_VERSION = 1


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the result: immutable, and strict about names and types."""


class Row(_Part, frozen=True):
    """One stage of one implementation; or, where `note` says why, that it was not measured."""

    case: str
    stage: str | None
    implementation: str
    precision: str | None
    median_s: float | None = None
    p90_s: float | None = None
    p99_s: float | None = None
    min_s: float | None = None
    spread: float | None = None  # of the middle half, over the median
    seconds: tuple[float, ...] = ()  # every one that was measured
    videos_per_s: float | None = None  # of a batch
    peak_rss_bytes: int | None = None
    device_memory_bytes: int | None = None
    energy_j: float | None = None  # of the whole machine while it ran, median; None where nothing tells it
    relative_error: float | None = None  # L2 of the difference from the reference's output, over the reference's
    psnr_db: float | None = None  # of frames; None also where they are equal
    output_sha256: str | None = None
    note: str | None = None


class RatioRow(_Part, frozen=True):
    """How many times as long `against` takes as `implementation`, our own; above 1, ours is faster."""

    case: str
    stage: str
    implementation: str
    precision: str
    against: str
    against_precision: str
    ratio: float
    low: float  # least and greatest of the rounds
    high: float


class Series(_Part, frozen=True):
    """What a plot over time shows."""

    case: str
    implementation: str
    precision: str
    step_s: tuple[float, ...] = ()  # median of each step's runs
    memory: tuple[tuple[float, int], ...] = ()  # (seconds since the process began, resident bytes), to the first result


class Noise(_Part, frozen=True):
    """Whether the machine was quiet enough to believe the figures."""

    quiet: bool
    reasons: tuple[str, ...]
    pulse_spread: float  # of a fixed piece of work, done before every round
    others_cpu_share: float | None  # of the machine's cores, taken by other programs meanwhile
    load_average_before: float


class Result(_Part, frozen=True):
    """Everything that a run of the benchmark found, and what it ran on."""

    schema_version: int
    mutoscope: str
    started: str  # ISO 8601, UTC
    scenario: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    noise: Noise
    reference: dict[str, str | None]  # by case: whose output the errors are measured against
    rows: tuple[Row, ...]
    ratios: tuple[RatioRow, ...]
    series: tuple[Series, ...] = ()


def figures(seconds: Sequence[float]) -> dict[str, Any]:
    """The columns of a row that follow from its seconds."""
    return {
        "median_s": _rounded(statistics.median(seconds)),
        "p90_s": _rounded(percentile(seconds, 0.9)),
        "p99_s": _rounded(percentile(seconds, 0.99)),
        "min_s": _rounded(min(seconds)),
        "spread": _rounded(spread(seconds)),
        "seconds": tuple(map(_rounded, seconds)),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def write_result(path: Path, result: Result) -> None:
    """Writes the result as JSON.

    Raises:
        OutputError: the file cannot be written.
    """
    content = msgspec.json.format(msgspec.json.encode(result), indent=1)
    try:
        path.write_bytes(content + b"\n")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def read_result(path: Path) -> Result:
    """Reads what `write_result` wrote.

    Raises:
        RequestError: the file is no result, or one of another version.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    try:
        version = msgspec.json.decode(content)["schema_version"]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise RequestError(f"{path} is no result of `mutoscope bench`; write one with --json {path.name}") from error
    if version != SCHEMA_VERSION:
        raise RequestError(
            f"{path} has version {version} of the result's schema; this Mutoscope reads {SCHEMA_VERSION}. Measure again"
        )
    try:
        return msgspec.json.decode(content, type=Result)
    except msgspec.ValidationError as error:
        raise RequestError(f"{path} is damaged: {error}. Measure again") from error
