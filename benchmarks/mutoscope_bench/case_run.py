"""Measures one case: prepares the work, lets the processes run in turn, and puts the rows together.

Knows the order of everything within a case. Knows nothing of any implementation, or of how a result is shown.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mutoscope import Pipeline
from mutoscope.bundle.bundle import Bundle
from mutoscope.errors import MutoscopeError
from mutoscope.request import VideoRequest

from . import energy
from .case_model import Model, model_of
from .cases import PROMPT, QUICK_REQUESTS, QUICK_TEXT_TOKENS, QUICK_VIDEOS, SEED, Case, UnmeasurableError
from .implementation import Variant, Work, text_shapes
from .implementations import OURS, REFERENCE, load_implementation
from .measuring import MeasurementError
from .noise_watch import NoiseWatch
from .options import Options
from .picture import with_picture
from .processes import Processes, import_seconds
from .result import RatioRow, Row, Series
from .rows import Runs, elapsed_s, ratios_between, rows_of, series_of, with_differences
from .stages import IN_TURNS, main_stage
from .variants import our_variants, peer_variants, runtime_options

LEAST_ROUNDS, ROUNDS_BUDGET_S = 3, 20.0  # a slow comparison stops early, but not before
Tell = Callable[[str], object]


class CaseRun:
    """One case: its rows, ratios and series, once `measure` has returned.

    Args:
        folder: made for this case, and its caller's to delete.
        watch: told of every round, with the processes that run in it.
        tell: told what happens now, in a few words.
    """

    def __init__(self, case: Case, options: Options, folder: Path, watch: NoiseWatch, tell: Tell) -> None:
        self.folder = folder
        self.rows: list[Row] = []
        self.ratios: list[RatioRow] = []
        self.series: list[Series] = []
        self.reference: str | None = None
        self._case = case
        self._options = options
        self._watch = watch
        self._tell = tell
        self._main_stage = main_stage(case.kind, options.scenario)
        self._imports: dict[str, list[float]] = {}  # seconds, by implementation
        self._cold: dict[Variant, tuple[float | None, str | None]] = {}  # seconds, and why it was not cold

    def measure(self) -> None:
        """Measures ours, then ours beside each peer.

        Raises:
            UnmeasurableError: the case cannot be prepared; says why and what to do.
        """
        self.folder.mkdir()
        model = model_of(self._case, self._options, self.folder, self._say)
        ours = our_variants(self._case, self._options, model.bundle, self._note)
        if not ours:
            raise UnmeasurableError("no backend can run it: " + "; ".join(row.note or "" for row in self.rows))
        processes = Processes(self._work(next(iter(ours)), model), self.folder)
        theirs = list(peer_variants(self._case, self._options, processes.work, any(ours.values()), self._note))
        if self._case.kind == "clip":
            self._measure_starts([*ours, *theirs], processes)
        with ExitStack() as stack:
            fastest = self._fastest_of_ours(stack, list(ours), processes)
            if fastest is None:
                return
            for variant in theirs:
                self._compare(fastest, variant, processes)
            self._finish(fastest)
        self._judge(processes)

    def _work(self, main: Variant, model: Model) -> Work:
        """What every process does, planned once with the variant of ours that a user gets first."""
        options, case = self._options, self._case
        quick = QUICK_REQUESTS[case.kind] if options.quick else {}
        given = options.request if case.model is None else {}
        request: dict[str, Any] = {"prompt": PROMPT, "seed": SEED} | dict(case.request) | dict(quick) | given
        bundle, backend = Bundle.open(model.bundle), main.implementation.removeprefix(f"{OURS} ")
        if case.picture:
            request = with_picture(request, bundle.manifest, self.folder)
        try:
            runtime = runtime_options(options, backend, main.precision)
            with Pipeline(bundle, runtime) as pipeline:
                plan = pipeline.plan(VideoRequest.from_dict(request))
        except MutoscopeError as error:
            raise UnmeasurableError(str(error)) from error
        tokens = QUICK_TEXT_TOKENS if options.quick else case.text_tokens or 0
        return Work(
            kind=case.kind,
            bundle=str(model.bundle),
            checkpoint=None if model.checkpoint is None else str(model.checkpoint),
            plan=plan.to_dict(),
            request=request,
            text_tokens=tokens,
            texts=text_shapes(bundle, tokens),
            threads=options.threads,
            batch=self._videos(),
            result=str(self.folder / "output.npy"),
            video=str(self.folder / "video.mp4"),
            runtime=options.runtime,
        )

    def _videos(self) -> int:
        if self._case.kind == "clip":
            return self._options.batch
        return min(self._case.videos, QUICK_VIDEOS) if self._options.quick else self._case.videos

    # The processes

    def _measure_starts(self, variants: Sequence[Variant], processes: Processes) -> None:
        """Imports and cold loads, each in fresh processes; what would load the same again is left out."""
        loaded: set[tuple[str, str]] = set()
        imported: dict[str, list[float]] = {}
        for variant in variants:
            statement = load_implementation(variant.implementation).import_statement
            if statement not in imported:
                self._say(f"importing {variant.implementation}")
                imported[statement] = import_seconds(statement)
            self._imports[variant.implementation] = imported[statement]
            if (statement, variant.precision) not in loaded:
                loaded.add((statement, variant.precision))
                self._say(f"loading {variant} cold")
                self._cold[variant] = processes.cold_load(variant)

    def _started(self, stack: ExitStack, variant: Variant, processes: Processes) -> Runs | None:
        self._say(f"starting {variant}")
        try:
            worker, trace, pid = stack.enter_context(processes.start(variant))
        except MeasurementError as error:
            self._note(variant.implementation, variant.precision, f"not measured: {error}")
            return None
        cold_s, cold_note = self._cold.get(variant, (None, None))
        result, videos = processes.result_file(variant), processes.work.batch
        return Runs(variant, worker, trace, pid, result, videos, cold_s, cold_note)

    def _fastest_of_ours(self, stack: ExitStack, ours: Sequence[Variant], processes: Processes) -> Runs | None:
        """Ours in turn. The fastest stays open, to be compared with the peers; the others are finished."""
        together = [runs for variant in ours if (runs := self._started(stack, variant, processes))]
        self._rounds(together, least=1)
        ran = [runs for runs in together if runs.answers]
        fastest = min(ran, key=lambda runs: statistics.median(elapsed_s(runs)), default=None)
        for runs in together:
            if runs is not fastest:
                self._finish(runs)
                runs.worker.close()
        return fastest

    def _compare(self, ours: Runs, variant: Variant, processes: Processes) -> None:
        """One peer in turn with the fastest of ours."""
        with ExitStack() as stack:
            peer = self._started(stack, variant, processes)
            if peer is None:
                return
            before = len(ours.answers)
            self._rounds([ours, peer], least=2)
            self._finish(peer)
            self.ratios += ratios_between(self._case.name, ours, ours.answers[before:], peer, self._main_stage)

    def _rounds(self, given: Sequence[Runs], least: int) -> None:
        """A B A B ...; one that fails keeps what it has, and fewer than `least` do not go on."""
        together = list(given)
        begun = time.monotonic()
        for number in range(self._options.rounds):
            if number >= LEAST_ROUNDS and time.monotonic() - begun > ROUNDS_BUDGET_S:
                break
            self._say(f"{given[-1].variant}, round {number + 1} of {self._options.rounds}")
            pids = [runs.pid for runs in together]
            self._watch.before(pids)
            for runs in list(together):
                before = energy.counters()
                try:
                    answer = runs.worker.run()
                except MeasurementError as error:
                    self._note(runs.variant.implementation, runs.variant.precision, f"stopped: {error}")
                    together.remove(runs)
                    continue
                taken = energy.difference_j(before, energy.counters())
                # A run that goes several ways takes the energy of all, and its rows are of one each.
                runs.answers.append(answer | {"energy_j": None if self._case.kind in IN_TURNS else taken})
            self._watch.after(pids)
            if len(together) < least:
                break

    # The rows

    def _say(self, text: str) -> None:
        self._tell(f"{self._case.name}: {text}")

    def _note(self, implementation: str, precision: str | None, note: str) -> None:
        self.rows.append(
            Row(case=self._case.name, stage=None, implementation=implementation, precision=precision, note=note)
        )

    def _finish(self, runs: Runs) -> None:
        """Its rows and series. Errors are filled in when all outputs are there."""
        if runs.answers:
            name = self._case.name
            self.rows += rows_of(name, runs, self._main_stage, self._imports.get(runs.variant.implementation, []))
            self.series.append(series_of(name, runs))

    def _judge(self, processes: Processes) -> None:
        """Fills in how far each output is from the reference: Diffusers in fp32 where it ran, else ours in fp32."""
        variants = [
            Variant(row.implementation, row.precision or "") for row in self.rows if row.stage == self._main_stage
        ]
        there = {variant: file for variant in variants if (file := processes.result_file(variant)).exists()}
        ours = [variant for variant in there if variant.implementation.startswith(OURS) and variant.precision == "fp32"]
        reference = next((variant for variant in (Variant(*REFERENCE), *ours) if variant in there), None)
        if reference is not None:
            self.reference = str(reference)
            self.rows = with_differences(self.rows, there, reference, self._main_stage)
