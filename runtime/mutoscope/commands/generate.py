"""`mutoscope generate`: a prompt into a file. Knows the pipeline and the writer, and what is told to whom."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

from mutoscope_engines.system.machine import peak_memory_bytes

from ..builtin import bundle_path
from ..bundle.bundle import Bundle
from ..making import make_file
from ..output import ENDINGS
from ..output.encoders import silence
from ..output.video import check_output
from ..pipeline import Pipeline
from ..planning.plan import Plan
from ..policy import ask, load_policy
from ..progress import Progress
from ..request import OutputOptions, RuntimeOptions, VideoRequest
from ..terminal import note, tell
from .arguments import Parser, add_bundle, add_fields, add_policy, given


def main(argv: Sequence[str]) -> int:
    """`mutoscope generate`. Returns the exit code."""
    arguments = _parser().parse(argv)
    request = VideoRequest(**given(arguments, VideoRequest))
    output = OutputOptions(**given(arguments, OutputOptions))
    ask(None if arguments.policy is None else load_policy(arguments.policy), request)
    if not arguments.explain:
        check_output(arguments.output, **vars(output))
    silence()
    started = time.perf_counter()
    with _Progress(sys.stderr, quiet=arguments.quiet) as progress:
        progress.start("checking the bundle")
        bundle = Bundle.open(arguments.bundle or bundle_path())
        with Pipeline(bundle, RuntimeOptions(**given(arguments, RuntimeOptions))) as pipeline:
            load_s = time.perf_counter() - started
            progress.clear()
            if arguments.explain:
                return _explain(pipeline.plan(request), arguments)
            made = make_file(pipeline, request, arguments.output, output, progress)
    total_s = time.perf_counter() - started
    if not arguments.quiet:
        note(f"wrote {made.file.path}, seed {made.plan.seed}, in {total_s:.1f} s")
    if arguments.json:
        times = {"load": load_s, **made.times_s, "total": total_s}
        facts = {
            "plan": made.plan.to_dict(),
            "times_s": {stage: round(seconds, 4) for stage, seconds in times.items()},
            "peak_memory_bytes": peak_memory_bytes(),
            "output": made.file.to_dict(),
        }
        tell(json.dumps(facts))
    return 0


class _Progress(Progress):
    def on_plan(self, plan: Plan) -> None:
        _tell_notes(plan, quiet=self.quiet)


def _parser() -> Parser:
    parser = Parser(
        "generate",
        "Makes a video from a prompt.",
        epilog="Where no default is shown, the bundle sets it; --explain prints every value. An existing output file "
        "is replaced. Put a prompt that begins with a dash last, after --.",
    )
    parser.add_argument("prompt", metavar="PROMPT", help="what the video should show, in quotes")
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        default="out.mp4",
        help=f"output file; its ending sets the format: {ENDINGS}, or / for a folder of PNGs (default: out.mp4)",
    )
    add_bundle(parser, "--bundle")
    add_policy(parser)
    parser.add_argument(
        "--explain", action="store_true", help="print every setting and the expected memory, and make no video"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: settings, times, memory and output file"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors to standard error")
    add_fields(parser, VideoRequest, skip=["prompt"])
    add_fields(parser, RuntimeOptions)
    add_fields(parser, OutputOptions)
    return parser


def _explain(plan: Plan, arguments: argparse.Namespace) -> int:
    _tell_notes(plan, quiet=arguments.quiet)
    tell(json.dumps({"plan": plan.to_dict()}) if arguments.json else plan.describe())
    return 0


def _tell_notes(plan: Plan, *, quiet: bool) -> None:
    if not quiet:
        for text in plan.notes:
            note(f"note: {text}")
