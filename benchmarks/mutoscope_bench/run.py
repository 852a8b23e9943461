"""Runs a benchmark: every case that was asked for, into one result.

Knows cases and results. How one case is measured, `case_run` knows.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from mutoscope.errors import RequestError
from mutoscope.version import __version__

from . import energy, machine_facts
from .case_run import CaseRun, Tell
from .cases import CASES, UnmeasurableError
from .implementations import OURS
from .noise_watch import NoiseWatch
from .options import Options
from .result import SCHEMA_VERSION, RatioRow, Result, Row, Series
from .stages import MAIN_STAGES


def run(options: Options, tell: Tell, keep: Callable[[Result], object] = lambda result: None) -> Result:
    """Measures everything. What cannot be measured is a row whose note says why.

    Args:
        tell: told what happens now, in a few words.
        keep: given what there is after each case, so that whatever stops the next does not lose it.

    Raises:
        BundleError: the bundle that was named is refused.
        RequestError: nothing could be measured at all; says why.
    """
    benchmark = _Benchmark(options)
    with tempfile.TemporaryDirectory(prefix="mutoscope-bench-") as name:
        for case in options.cases:
            benchmark.measure(case, Path(name), tell)
            if benchmark.has_times:
                keep(benchmark.result())
    if not benchmark.has_times:
        raise RequestError("nothing could be measured: " + "; ".join(row.note or "" for row in benchmark.rows))
    return benchmark.result()


class _Benchmark:
    """What the cases measured so far."""

    def __init__(self, options: Options) -> None:
        self.rows: list[Row] = []
        self._options = options
        self._watch = NoiseWatch()
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._ratios: list[RatioRow] = []
        self._series: list[Series] = []
        self._reference: dict[str, str | None] = {}

    @property
    def has_times(self) -> bool:
        return any(row.seconds for row in self.rows)

    def measure(self, name: str, folder: Path, tell: Tell) -> None:
        case = CaseRun(CASES[name], self._options, folder / name, self._watch, tell)
        try:
            case.measure()
        except UnmeasurableError as error:
            self.rows.append(Row(case=name, stage=None, implementation=OURS, precision=None, note=str(error)))
        else:
            self.rows += sorted(case.rows, key=lambda row: not row.implementation.startswith(OURS))
            self._ratios += case.ratios
            self._series += case.series
            self._reference[name] = case.reference
        finally:
            shutil.rmtree(case.folder, ignore_errors=True)

    def result(self) -> Result:
        spreads = {
            f"{row.case} in {row.implementation} {row.precision}": row.spread
            for row in self.rows
            if row.stage in MAIN_STAGES and row.implementation.startswith(OURS) and row.spread is not None
        }
        return Result(
            schema_version=SCHEMA_VERSION,
            mutoscope=__version__,
            started=self._started,
            scenario=self._options.scenario,
            machine=machine_facts.describe(),
            settings=self._options.settings() | {"energy": energy.why_not() or "measured, of the whole machine"},
            noise=self._watch.verdict(spreads),
            reference=self._reference,
            rows=tuple(self.rows),
            ratios=tuple(self._ratios),
            series=tuple(self._series),
        )
