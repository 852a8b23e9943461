"""Measures cases: prepares the work, starts the processes, lets them run in turn, and puts the rows together.

Knows the order of everything. Knows nothing of any implementation, or of how a result is shown.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mutoscope import Pipeline
from mutoscope.builtin import bundle_path
from mutoscope.bundle.bundle import Bundle
from mutoscope.errors import MutoscopeError, RequestError
from mutoscope.planning.execution import Execution
from mutoscope.request import RuntimeOptions
from mutoscope.version import __version__
from mutoscope_engines.backends import JOINED_BY
from mutoscope_engines.system.child_python import child_python
from mutoscope_engines.telemetry import OPT_OUT

from . import energy, machine, page_cache
from .cases import CASES, PROMPT, QUICK_REQUESTS, QUICK_TEXT_TOKENS, SEED, Case
from .implementation import Variant, Work
from .implementations import OURS, PEERS, REFERENCE, load_implementation
from .measuring import MeasurementError, Worker
from .memory_trace import MemoryTrace
from .noise import NoiseWatch
from .options import Options
from .result import MAIN_STAGES, SCHEMA_VERSION, RatioRow, Result, Row, Series
from .rows import MAIN_STAGE, Runs, elapsed_s, ratios_between, rows_of, series_of, with_differences

WORKER = "mutoscope_bench.worker"
IMPORTS, IMPORTS_BUDGET_S = 3, 10.0  # processes that import, as many as fit
DECODER = "vae_decoder_next"  # the graph that a decode runs most
LEAST_ROUNDS, ROUNDS_BUDGET_S = 3, 20.0  # a slow comparison stops early, but not before
Tell = Callable[[str], object]
Cold = dict[Variant, tuple[float | None, str | None]]  # seconds, and why it was not cold


class _UnmeasurableError(Exception):
    """A case cannot be prepared; the message says why and what to do."""


def run(options: Options, tell: Tell, keep: Callable[[Result], object] = lambda result: None) -> Result:
    """Measures everything. What cannot be measured is a row whose note says why.

    Args:
        tell: told what happens now, in a few words.
        keep: given what there is after each case, so that whatever stops the next does not lose it.

    Raises:
        BundleError: the bundle that was named is refused.
        RequestError: nothing could be measured at all; says why.
    """
    watch = NoiseWatch()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    rows: list[Row] = []
    ratios: list[RatioRow] = []
    series: list[Series] = []
    reference: dict[str, str | None] = {}

    def so_far() -> Result:
        spreads = {
            f"{row.case} in {row.implementation} {row.precision}": row.spread
            for row in rows
            if row.stage in MAIN_STAGES and row.implementation.startswith(OURS) and row.spread is not None
        }
        return Result(
            schema_version=SCHEMA_VERSION,
            mutoscope=__version__,
            started=started,
            scenario=options.scenario,
            machine=machine.describe(),
            settings=options.settings() | {"energy": energy.why_not() or "measured, of the whole machine"},
            noise=watch.verdict(spreads),
            reference=reference,
            rows=tuple(rows),
            ratios=tuple(ratios),
            series=tuple(series),
        )

    with tempfile.TemporaryDirectory(prefix="mutoscope-bench-") as name:
        for case_name in options.cases:
            case = CASES[case_name]
            measured = _Measured(case, options, Path(name) / case.name, watch, tell)
            try:
                measured.measure()
            except _UnmeasurableError as error:
                rows.append(Row(case=case.name, stage=None, implementation=OURS, precision=None, note=str(error)))
            else:
                rows += sorted(measured.rows, key=lambda row: not row.implementation.startswith(OURS))
                ratios += measured.ratios
                series += measured.series
                reference[case.name] = measured.reference
            finally:
                shutil.rmtree(measured.folder, ignore_errors=True)
            if any(row.seconds for row in rows):
                keep(so_far())
    if not any(row.seconds for row in rows):
        raise RequestError("nothing could be measured: " + "; ".join(row.note or "" for row in rows))
    return so_far()


class _Measured:
    """One case: its rows, ratios and series, once `measure` has returned."""

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
        self._imports: dict[str, list[float]] = {}
        self._on_device = False  # whether any of ours runs on a GPU

    def measure(self) -> None:
        """Raises `_UnmeasurableError`."""
        self.folder.mkdir()
        bundle, checkpoint = self._model()
        ours = self._our_variants(bundle)
        work = self._work(ours[0], bundle, checkpoint)
        theirs = list(self._peer_variants(work))
        cold: Cold = {}
        if self._is_clip:
            self._measure_starts([*ours, *theirs], work, cold)
        with ExitStack() as stack:
            fastest = self._fastest_of_ours(stack, ours, work, cold)
            if fastest is None:
                return
            for variant in theirs:
                with ExitStack() as once:
                    peer = self._started(once, variant, work, cold)
                    if peer is None:
                        continue
                    before = len(fastest.answers)
                    self._rounds([fastest, peer], least=2)
                    self._finish(peer)
                    self.ratios += ratios_between(
                        self._case.name, fastest, fastest.answers[before:], peer, self._main_stage
                    )
            self._finish(fastest)
        self._judge()

    def _fastest_of_ours(self, stack: ExitStack, ours: Sequence[Variant], work: Work, cold: Cold) -> Runs | None:
        """Ours in turn. The fastest stays open, to be compared with the peers; the others are finished."""
        together = [runs for variant in ours if (runs := self._started(stack, variant, work, cold))]
        self._rounds(together, least=1)
        ran = [runs for runs in together if runs.answers]
        fastest = min(ran, key=lambda runs: statistics.median(elapsed_s(runs)), default=None)
        for runs in together:
            if runs is not fastest:
                self._finish(runs)
                runs.worker.close()
        return fastest

    def _say(self, text: str) -> None:
        self._tell(f"{self._case.name}: {text}")

    # The work

    @property
    def _is_clip(self) -> bool:
        return self._case.kind == "clip"

    def _model(self) -> tuple[Path, Path | None]:
        """The bundle and, where there is one, the checkpoint it was exported from."""
        options, case = self._options, self._case
        if case.model is None:
            if case.needs_bundle and options.bundle is None:
                raise _UnmeasurableError(f"needs a real model: mutoscope bench BUNDLE --case {case.name}")
            return options.bundle or bundle_path(), options.checkpoint or self._builtin_checkpoint()
        name = "tiny" if options.quick else case.model
        folder = (options.models or self.folder) / name
        self._say(f"making a model with random weights ({name})")
        command = child_python("-m", "mutoscope_peers.random_models", name, str(folder))
        made = subprocess.run(command, env=os.environ | OPT_OUT, capture_output=True, text=True)
        if made.returncode:
            last = (made.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise _UnmeasurableError(
                f"its model with random weights could not be made ({last}); that needs: pip install 'mutoscope[export]'"
            )
        return folder / "bundle", folder / "checkpoint"

    def _builtin_checkpoint(self) -> Path | None:
        """Beside the sources, which an installation does not have."""
        if self._options.bundle is not None:
            return None
        for parent in bundle_path().parents:
            path = parent / "export" / "mutoscope_export" / "builtin" / "checkpoint"
            if path.is_dir():
                return path
        return None

    @property
    def _request(self) -> dict[str, Any]:
        quick = QUICK_REQUESTS[self._case.kind] if self._options.quick else {}
        start = {"prompt": PROMPT, "seed": SEED}
        given = self._options.request if self._case.model is None else {}
        return start | dict(self._case.request) | dict(quick) | given

    def _our_variants(self, root: Path) -> list[Variant]:
        """Every backend asked for, with every precision asked for that it runs; the one that a user gets first."""
        bundle, asked = Bundle.open(root), self._options.precisions
        found: list[Variant] = []
        for name in self._options.backends:
            try:
                first = self._execution(bundle, name)
            except MutoscopeError as error:
                self._note(f"{OURS} {name}", None, str(error))
                continue
            for precision in dict.fromkeys(asked or (first.main.precision, *bundle.manifest.precisions("denoiser"))):
                try:
                    execution = self._execution(bundle, name, precision)
                except MutoscopeError as error:
                    if asked:
                        self._note(f"{OURS} {name}", precision, str(error))
                    continue
                variant = self._variant(bundle, execution)
                on_device = execution.main.backend.on_device
                if on_device != first.main.backend.on_device:
                    if asked:
                        where = "a GPU" if on_device else "the CPU"
                        self._note(variant.implementation, precision, f"runs on {where}; add --backend to measure it")
                elif variant not in found:
                    found.append(variant)
                    self._on_device |= on_device
        if not found:
            raise _UnmeasurableError("no backend can run it: " + "; ".join(row.note or "" for row in self.rows))
        return found

    def _execution(self, bundle: Bundle, backend: str, precision: str | None = None) -> Execution:
        given = {"backend": backend, "precision": precision, "threads": self._options.threads}
        return Execution.choose(RuntimeOptions(**(self._options.runtime | given)), bundle)

    def _variant(self, bundle: Bundle, execution: Execution) -> Variant:
        """By what runs in this case alone: what narrows only the denoiser decodes in another precision."""
        placements, precision = execution.placements, execution.main.precision
        ran = {"clip": placements, "forward": ["denoiser"], "decode": ["vae_decoder"]}[self._case.kind]
        names = dict.fromkeys(placements[stage].backend.name for stage in ran)
        if self._case.kind == "decode":
            decodes = bundle.manifest.graphs_of(DECODER, placements["vae_decoder"].precision)[0].precision
            precision = decodes if decodes in bundle.manifest.precisions("denoiser") else precision
        return Variant(f"{OURS} {JOINED_BY.join(names)}", precision)

    def _work(self, main: Variant, bundle: Path, checkpoint: Path | None) -> Work:
        options, request = self._options, self._request
        backend = main.implementation.removeprefix(f"{OURS} ")
        runtime = options.runtime | {"backend": backend, "precision": main.precision, "threads": options.threads}
        try:
            with Pipeline.load(bundle, **runtime) as pipeline:
                plan = pipeline.plan(**request)
        except MutoscopeError as error:
            raise _UnmeasurableError(str(error)) from error
        return Work(
            kind=self._case.kind,
            bundle=str(bundle),
            checkpoint=None if checkpoint is None else str(checkpoint),
            plan=plan.to_dict(),
            request=request,
            text_tokens=QUICK_TEXT_TOKENS if options.quick else self._case.text_tokens or 0,
            text_width=Bundle.open(bundle, verify=False).manifest.text.width,
            threads=options.threads,
            batch=options.batch if self._is_clip else 1,
            result=str(self.folder / "output.npy"),
            video=str(self.folder / "video.mp4"),
            runtime=options.runtime,
        )

    def _peer_variants(self, work: Work) -> Iterator[Variant]:
        """Those that can do the work, the reference first; a row for each that cannot."""
        for name in sorted(self._options.against, key=lambda name: name != REFERENCE[0]):
            if name in self._case.left_out:
                self._note(name, None, f"left out: {self._case.left_out[name]}")
                continue
            try:
                peer = load_implementation(name)
            except ModuleNotFoundError as error:
                self._note(name, None, f"needs {error.name}; run: pip install 'mutoscope[bench]'")
                continue
            reason = peer.unavailable_because()
            if reason is None and self._on_device and not peer.on_device:
                reason = "runs on the CPU, ours on a GPU; to compare with it, add --backend onnxruntime"
            if reason is not None:
                self._note(name, None, reason)
                continue
            for precision in peer.variants:
                reason = peer.cannot(work, precision)
                if reason is None:
                    yield Variant(name, precision)
                else:
                    self._note(name, precision, reason)

    # The processes

    def _measure_starts(self, variants: Sequence[Variant], work: Work, cold: Cold) -> None:
        """Imports and cold loads, each in fresh processes; what would load the same again is left out."""
        loaded: set[tuple[str, str]] = set()
        imported: dict[str, list[float]] = {}
        for variant in variants:
            implementation = load_implementation(variant.implementation)
            statement = implementation.import_statement
            if statement not in imported:
                self._say(f"importing {variant.implementation}")
                imported[statement] = _import_seconds(statement)
            self._imports[variant.implementation] = imported[statement]
            if (statement, variant.precision) not in loaded:
                loaded.add((statement, variant.precision))
                reads = work.bundle if implementation.files_of == "bundle" else work.checkpoint
                self._say(f"loading {variant} cold")
                cold[variant] = self._cold(variant, work, Path(reads or work.bundle))

    def _cold(self, variant: Variant, work: Work, folder: Path) -> tuple[float | None, str | None]:
        """Seconds of loading with nothing in the page cache, and what kept it from being cold."""
        note = page_cache.drop(folder)
        with tempfile.TemporaryFile() as log:
            try:
                worker = Worker(WORKER, self._spec(variant, work) | {"load_only": True}, log=log)
            except MeasurementError:
                return None, None  # the warm start meets the same, and tells
            worker.close()
        return worker.first["load_s"], note

    @contextmanager
    def _process(self, variant: Variant, work: Work) -> Iterator[tuple[Worker, MemoryTrace, int]]:
        trace, pids = MemoryTrace(), []

        def on_start(pid: int) -> None:
            pids.append(pid)
            trace.start(pid)

        with tempfile.TemporaryFile() as log:
            try:
                worker = Worker(WORKER, self._spec(variant, work), log=log, on_start=on_start)
            finally:
                trace.stop()
            try:
                yield worker, trace, pids[0]
                worker.close()
            finally:
                worker.kill()

    def _spec(self, variant: Variant, work: Work) -> dict[str, Any]:
        result = str(self._result_file(variant))
        video = str(self._result_file(variant).with_suffix(".mp4"))
        values = work.to_dict() | {"result": result, "video": video}
        path = PEERS.get(variant.implementation)
        return {"implementation": variant.implementation, "path": path, "precision": variant.precision, "work": values}

    def _result_file(self, variant: Variant) -> Path:
        return self.folder / f"{variant.implementation}-{variant.precision}.npy".replace(" ", "-")

    def _started(self, stack: ExitStack, variant: Variant, work: Work, cold: Cold) -> Runs | None:
        self._say(f"starting {variant}")
        try:
            worker, trace, pid = stack.enter_context(self._process(variant, work))
        except MeasurementError as error:
            self._note(variant.implementation, variant.precision, f"not measured: {error}")
            return None
        return Runs(variant, worker, trace, pid, self._result_file(variant), *cold.get(variant, (None, None)))

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
                runs.answers.append(answer | {"energy_j": energy.difference_j(before, energy.counters())})
            self._watch.after(pids)
            if len(together) < least:
                break

    # The rows

    def _note(self, implementation: str, precision: str | None, note: str) -> None:
        self.rows.append(
            Row(case=self._case.name, stage=None, implementation=implementation, precision=precision, note=note)
        )

    @property
    def _main_stage(self) -> str:
        return "batch" if self._options.scenario == "Offline" and self._is_clip else MAIN_STAGE[self._case.kind]

    def _finish(self, runs: Runs) -> None:
        """Its rows and series. Errors are filled in when all outputs are there."""
        if runs.answers:
            name = self._case.name
            self.rows += rows_of(name, runs, self._main_stage, self._imports.get(runs.variant.implementation, []))
            self.series.append(series_of(name, runs))

    def _judge(self) -> None:
        """Fills in how far each output is from the reference: Diffusers in fp32 where it ran, else ours in fp32."""
        variants = [
            Variant(row.implementation, row.precision or "") for row in self.rows if row.stage == self._main_stage
        ]
        there = {variant: file for variant in variants if (file := self._result_file(variant)).exists()}
        ours = [variant for variant in there if variant.implementation.startswith(OURS) and variant.precision == "fp32"]
        reference = next((variant for variant in (Variant(*REFERENCE), *ours) if variant in there), None)
        if reference is not None:
            self.reference = str(reference)
            self.rows = with_differences(self.rows, there, reference, self._main_stage)


def _import_seconds(statement: str) -> list[float]:
    """Of as many fresh processes as the budget allows; empty where the libraries do not import."""
    code = f"import time; s = time.perf_counter()\n{statement}\nprint(time.perf_counter() - s)"
    taken: list[float] = []
    begun = time.monotonic()
    while len(taken) < IMPORTS and (not taken or time.monotonic() - begun < IMPORTS_BUDGET_S):
        done = subprocess.run(child_python("-c", code), env=os.environ | OPT_OUT, capture_output=True, text=True)
        if done.returncode:
            break
        taken.append(float(done.stdout.split()[-1]))
    return taken
