"""`mutoscope bench`: how fast it is here, alone or beside others. Knows flags and exit codes; `bench` measures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mutoscope.codec import to_plain
from mutoscope.commands.arguments import Parser, add_bundle, add_fields, given
from mutoscope.errors import RequestError
from mutoscope.output.destination import find_place
from mutoscope.output.encoders import silence
from mutoscope.output.file_names import refuse_reserved
from mutoscope.progress import Progress
from mutoscope.request import LORAS, OF_CLIPS, PICTURES, RuntimeOptions, VideoRequest
from mutoscope.terminal import tell
from mutoscope.values import checks
from mutoscope_engines.backends import AUTO, BACKENDS, JOINED_BY
from mutoscope_engines.names import no_such
from mutoscope_engines.precisions import PRECISIONS

from . import comparison, machine_facts
from .cases import CASES, COMPARED, DEFAULT_CLIP, PROMPT, SEED
from .implementations import PEERS
from .options import SCENARIOS, Options
from .report import write_report
from .result import Result, read_result, write_result
from .run import run
from .table import describe, describe_changes

SLOWER = 1  # the exit code of a regression
MOST_ROUNDS = 1000
ALL = "all"  # peers


def main(argv: Sequence[str]) -> int:
    """`mutoscope bench`. Returns the exit code."""
    arguments = _parser().parse(argv)
    options = _options(arguments)
    for path in filter(None, (arguments.json, arguments.html)):  # before minutes of measuring
        refuse_reserved(str(path))
        find_place(path, is_folder=False)
    old = read_result(arguments.compare) if arguments.compare else None
    if old is not None:
        comparison.refuse_other_machine(machine_facts.describe(), old, arguments.compare)
        comparison.refuse_other_settings(options.settings(), options.scenario, old, arguments.compare)
    silence()

    def keep(result: Result) -> None:
        if arguments.json:
            write_result(arguments.json, result)

    with Progress(sys.stderr, quiet=arguments.quiet) as progress:
        result = run(options, progress.start, keep)
    tell(describe(result))
    if arguments.html:
        write_report(arguments.html, result)
    if old is None:
        return 0
    changes = comparison.compare(old, result)
    tell("\n" + describe_changes(changes))
    return SLOWER if any(change.worse for change in changes) else 0


def _parser() -> Parser:
    parser = Parser(
        "bench",
        "Measures the time of each stage on this machine, for Mutoscope and for other software.",
        epilog="Without flags, measures the default clip of the built-in model, in about a minute. The default prompt "
        f"is {PROMPT!r}, the default seed {SEED}. --against without BUNDLE and --case measures the cases "
        f"{', '.join(COMPARED)}. All cases: "
        + "; ".join(f"{case.name} ({case.purpose})" for case in CASES.values())
        + ". With --compare, exit code 1 means that something got slower. docs/benchmarking.md explains the figures.",
    )
    add_bundle(parser)
    parser.add_argument("--case", nargs="+", metavar="NAME", default=[], help="cases to measure, from the list below")
    peers = f"software to compare with: {', '.join(PEERS)}, or {ALL}"
    parser.add_argument("--against", metavar="PEER,...", default="", help=peers)
    backends = (
        f"inference engines for Mutoscope: {', '.join(BACKENDS)}, or several joined as in "
        f"onnxruntime{JOINED_BY}openvino for the fastest of them (default: {AUTO}, the fastest of all)"
    )
    parser.add_argument("--backend", nargs="+", metavar="NAME", default=[AUTO], help=backends)
    precisions = "precisions of Mutoscope's denoiser (default: all in the bundle that the backend supports)"
    parser.add_argument("--precision", nargs="+", metavar="NAME", default=[], help=precisions)
    scenarios = "; ".join(f"{name}, {what}" for name, what in SCENARIOS.items())
    parser.add_argument(
        "--scenario", metavar="{" + ",".join(SCENARIOS) + "}", default="SingleStream",
        help=f"MLPerf scenario: {scenarios} (default: SingleStream)",
    )  # fmt: skip
    rounds = "timed runs of each measurement after a warm-up; slow comparisons stop after three (default: 5)"
    parser.add_argument("--rounds", type=int, metavar="N", default=5, help=rounds)
    parser.add_argument(
        "--quick", action="store_true", help="use tiny sizes and one run, only to see that everything works"
    )
    checkpoint = "the checkpoint of BUNDLE, for peers that read checkpoints"
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help=checkpoint)
    models = "keep the random-weight models in this folder and reuse them (default: generate them for each run)"
    parser.add_argument("--models", type=Path, metavar="FOLDER", help=models)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the result as JSON; docs/benchmarking.md explains its fields"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a report with charts")
    parser.add_argument(
        "--compare", type=Path, metavar="OLD.json", help="list what got slower since an older result of this machine"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress line")
    # A case draws its picture itself, and none goes on from a clip or has LoRAs.
    add_fields(parser, VideoRequest, skip=(*PICTURES, *OF_CLIPS, *LORAS))
    add_fields(parser, RuntimeOptions, skip=["backend", "precision"])
    return parser


def _options(arguments: argparse.Namespace) -> Options:
    """What the flags ask for.

    Raises:
        RequestError: there is nothing of a given name; lists the nearest.
    """
    against = tuple(filter(None, arguments.against.split(",")))
    cases = tuple(dict.fromkeys(arguments.case)) or (COMPARED if against and not arguments.bundle else (DEFAULT_CLIP,))
    for what, names, known in (
        ("case", cases, list(CASES)),
        ("peer", against, [*PEERS, ALL]),
        ("backend", [each for name in arguments.backend for each in name.split(JOINED_BY)], [AUTO, *BACKENDS]),
        ("precision", arguments.precision, list(PRECISIONS)),
        ("scenario", [arguments.scenario], list(SCENARIOS)),
    ):
        for name in names:
            if name not in known:
                raise RequestError(no_such(what, name, known))
    if not 1 <= arguments.rounds <= MOST_ROUNDS:
        raise RequestError(f"rounds must be 1 to {MOST_ROUNDS}; got {arguments.rounds}")
    # The backend and the precision vary from row to row.
    runtime = {
        name: value for name, value in given(arguments, RuntimeOptions).items() if name not in ("backend", "precision")
    }
    threads = checks.threads("threads", runtime.pop("threads", None))
    return Options(
        cases=cases,
        against=tuple(PEERS) if ALL in against else tuple(dict.fromkeys(against)),
        bundle=arguments.bundle,
        checkpoint=arguments.checkpoint,
        backends=tuple(dict.fromkeys(arguments.backend)),
        precisions=tuple(dict.fromkeys(arguments.precision)),
        scenario=arguments.scenario,
        rounds=1 if arguments.quick else arguments.rounds,
        threads=threads,
        quick=arguments.quick,
        models=arguments.models,
        request=to_plain(given(arguments, VideoRequest)),
        runtime=to_plain(runtime),
    )
