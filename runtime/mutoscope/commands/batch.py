"""`mutoscope batch`: a file of jobs into a folder of videos. Knows what is told to whom, and the exit code."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..builtin import bundle_path
from ..bulk.jobs import JobsError, read_jobs
from ..bulk.options import BatchOptions
from ..bulk.processes import run_workers, shared
from ..bulk.receipts import LIST, failures, receipt, write_lists
from ..bulk.store import FolderStore
from ..bulk.tally import Counter, Tally
from ..bulk.task import FAILED, Batch, Task, failure_name
from ..bulk.worker import Worker, open_store, tidy
from ..bundle.bundle import Bundle
from ..output.encoders import silence
from ..output.video import check_format
from ..pipeline import Pipeline
from ..policy import Policy, load_policy
from ..progress import Progress, duration
from ..request import OutputOptions, RuntimeOptions
from ..terminal import note, tell
from .arguments import Parser, add_bundle, add_fields, add_policy, given, in_flags

SOME_FAILED = 7  # the exit code where videos were left alone after too many attempts
LOOK_EVERY_S = 1.0
NOTE_EVERY_S = 60.0  # where there is no terminal


def main(argv: Sequence[str]) -> int:
    """`mutoscope batch`. Returns the exit code: 7 where videos were left alone."""
    arguments = _parser().parse(argv)
    options = BatchOptions(**given(arguments, BatchOptions))
    options.check()
    policy = None if arguments.policy is None else load_policy(arguments.policy)
    silence()
    with Progress(sys.stderr, quiet=arguments.quiet) as progress:
        progress.start("checking the bundle and the jobs")
        bundle = Bundle.open(arguments.bundle or bundle_path())
        with Pipeline(bundle, _runtime_of_one(arguments, bundle, options)) as pipeline:
            batch = _checked(arguments, options, pipeline, policy)
            progress.clear()
            with open_store(batch) as store:
                return _run(batch, pipeline, store, _Report(batch, store, progress, as_json=arguments.json))


def _runtime_of_one(arguments: argparse.Namespace, bundle: Bundle, options: BatchOptions) -> RuntimeOptions:
    runtime = RuntimeOptions(**given(arguments, RuntimeOptions))
    if options.workers == 1 or options.ray is not None:
        return runtime
    with Pipeline(bundle, runtime) as whole:
        return shared(whole.settled, options.workers)


def _checked(arguments: argparse.Namespace, options: BatchOptions, pipeline: Pipeline, policy: Policy | None) -> Batch:
    """The batch, once every line of the file can be done; tells those that cannot."""
    output = OutputOptions(**given(arguments, OutputOptions))
    check_format(f"video{options.ending}", output.codec)
    try:
        checked = read_jobs(arguments.jobs, pipeline, options.ending, output, policy)
    except JobsError as error:
        of_flags = [field for kind in (RuntimeOptions, OutputOptions) for field in fields(kind)]
        for problem in error.problems:
            cause = in_flags(problem.cause, of_flags)
            note(f"line {problem.line}: {cause}")
            if arguments.json:
                _tell_event("refused", {"line": problem.line, "cause": cause})
        raise
    return Batch(
        out=arguments.out,
        tasks=checked.tasks,
        bundle=pipeline.bundle.root,
        setting=checked.setting,
        runtime=pipeline.options,
        output=output,
        options=options,
    )


def _run(batch: Batch, pipeline: Pipeline, store: FolderStore, report: _Report) -> int:
    try:
        if report.start():
            tidy(store)
        elif batch.options.ray is not None:
            from ..bulk.on_ray import run_on_ray  # only here, because it brings Ray

            run_on_ray(batch, store, report.look)
            tidy(store)
        elif batch.options.workers == 1:
            Worker(batch, pipeline, report.look).run()
        else:
            run_workers(batch, store, report.look)
    finally:
        write_lists(batch, store)
    return report.end()


class _Report:
    """Tells how far the batch is: a person by one line, a program by JSON lines, from what its folder holds."""

    def __init__(self, batch: Batch, store: FolderStore, progress: Progress, *, as_json: bool) -> None:
        self._batch, self._store, self._progress, self._json = batch, store, progress, as_json
        self._counter = Counter(batch, store)
        self._jobs: dict[str, list[Task]] = {}
        for task in batch.tasks:
            self._jobs.setdefault(task.key, []).append(task)
        self._told = set(self._counter.done)
        self._began = 0  # so many were done
        self._looked = self._noted = time.monotonic()

    def start(self) -> bool:
        """Says where it begins. Gives whether there is nothing to do."""
        tally = self._counter.look()
        self._began = tally.done
        self._event("start", asdict(tally))
        if tally.done == tally.total:
            self._note(f"nothing to do: all {tally.total} videos are in {self._batch.out}")
        elif tally.done:
            self._note(f"{tally.done} of {tally.total} videos are in {self._batch.out} already")
        return tally.complete

    def look(self) -> None:
        """Tells what is new; often called, seldom looks."""
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            self._tell(self._counter.look())

    def end(self) -> int:
        """Says how it ended. Returns the exit code."""
        tally = self._counter.look()
        self._tell_finished()
        self._progress.clear()
        code = SOME_FAILED if tally.failed else 0
        attempts = failures(self._store) if self._counter.failed else {}
        for key in self._counter.failed:
            self._tell_failed(key, attempts[key])
        if self._began < tally.total:
            receipts = f"their receipts are in {self._batch.out / LIST}"
            self._note(f"{tally.done} of {tally.total} videos are finished; {receipts}")
        if tally.failed:
            self._note(f"to try the failed ones again, allow more attempts, or remove {self._batch.out / FAILED}")
        self._event("end", asdict(tally) | {"exit_code": code})
        return code

    def _tell(self, tally: Tally) -> None:
        self._tell_finished()
        self._event("progress", asdict(tally))
        line = _line(tally)
        self._progress.show(line)
        if not sys.stderr.isatty() and self._looked - self._noted >= NOTE_EVERY_S:
            self._noted = self._looked
            self._note(line)

    def _tell_finished(self) -> None:
        new = self._counter.done - self._told
        for key in (key for key in self._jobs if key in new):
            found = receipt(self._store, key) or {}
            facts = {name: found.get(name) for name in ("key", "file", "sha256", "seed", "attempt", "host")}
            for task in self._jobs[key]:
                self._event("done", {"id": task.id, "repeat": task.repeat} | facts)
        self._told |= self._counter.done

    def _tell_failed(self, key: str, attempts: int) -> None:
        last = json.loads(self._store.read(failure_name(key, attempts)) or b"{}")
        for task in self._jobs[key]:
            self._note(f"line {task.line} ({task.name}) failed {attempts} times: {last.get('cause', 'unknown')}")
            self._event("failed", {"id": task.id, "repeat": task.repeat, "line": task.line, **last})

    def _note(self, text: str) -> None:
        if not self._progress.quiet:
            self._progress.clear()
            note(text)

    def _event(self, kind: str, facts: dict[str, Any]) -> None:
        if self._json:
            _tell_event(kind, facts)


def _tell_event(kind: str, facts: dict[str, Any]) -> None:
    tell(json.dumps({"event": kind} | facts))


def _line(tally: Tally) -> str:
    parts = [f"{tally.done} of {tally.total} done", f"{tally.failed} failed", f"{tally.running} running"]
    if tally.videos_per_hour is not None and tally.left_s is not None:
        parts += [f"{tally.videos_per_hour:.0f} videos an hour", f"{duration(tally.left_s)} left"]
    return ", ".join(parts)


def _parser() -> Parser:
    parser = Parser(
        "batch",
        "Makes the videos of a file of jobs. Start it again to go on, and start it several times, also on several "
        "machines that share OUT, to share the work.",
        epilog=f"Exit codes: 0 all videos are finished, {SOME_FAILED} some were left alone after too many attempts, 2 "
        "the file of jobs or OUT cannot be used, 130 interrupted. OUT/receipts.jsonl lists the finished videos.",
    )
    parser.add_argument(
        "jobs",
        metavar="JOBS.jsonl",
        type=Path,
        help="one JSON object a line: the parameters of a video by name, such as num_frames, and id, repeat and meta",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the videos and receipts")
    add_bundle(parser, "--bundle")
    add_policy(parser)
    parser.add_argument("--json", action="store_true", help="print JSON lines: what is done, failed and left")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors to standard error")
    add_fields(parser, BatchOptions)
    add_fields(parser, RuntimeOptions)
    add_fields(parser, OutputOptions)
    return parser
