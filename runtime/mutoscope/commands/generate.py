"""`mutoscope generate`: a prompt into a file. Knows the pipeline and the writer, and what is told to whom."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mutoscope_engines.system.file_hash import file_sha256
from mutoscope_engines.system.machine import peak_memory_bytes

from ..builtin import bundle_path
from ..bundle.bundle import Bundle
from ..output import ENDINGS
from ..output.encoders import silence
from ..output.video import check_output, write_video
from ..pipeline import Pipeline
from ..planning.plan import Plan
from ..progress import Progress
from ..request import OutputOptions, RuntimeOptions, VideoRequest
from ..terminal import note, tell
from .arguments import Parser, add_bundle, add_fields, given


def main(argv: Sequence[str]) -> int:
    """`mutoscope generate`. Returns the exit code."""
    arguments = _parser().parse(argv)
    request = VideoRequest(**given(arguments, VideoRequest))
    output = given(arguments, OutputOptions)
    if not arguments.explain:
        check_output(arguments.output, **output)
    silence()
    started = time.perf_counter()
    with Progress(sys.stderr, quiet=arguments.quiet) as progress:
        progress.start("checking the bundle")
        bundle = Bundle.open(arguments.bundle or bundle_path())
        with Pipeline(bundle, RuntimeOptions(**given(arguments, RuntimeOptions))) as pipeline:
            load_s = time.perf_counter() - started
            progress.clear()
            if arguments.explain:
                return _explain(pipeline.plan(request), arguments)
            with pipeline.stream(request, on_step=progress.on_step, on_stage=progress.on_stage) as stream:
                _tell_notes(stream.plan, arguments)
                writing = time.perf_counter()
                header = stream.plan.header
                chunks = progress.watch(stream, header.num_frames)
                path = write_video(arguments.output, chunks, header, **output)
            write_s = time.perf_counter() - writing - sum(stream.times.seconds.values())
    total_s = time.perf_counter() - started
    if not arguments.quiet:
        note(f"wrote {path}, seed {stream.plan.seed}, in {total_s:.1f} s")
    if arguments.json:
        times = {"load": load_s, **stream.times.seconds, "write": write_s, "total": total_s}
        facts = {
            "plan": stream.plan.to_dict(),
            "times_s": {stage: round(seconds, 4) for stage, seconds in times.items()},
            "peak_memory_bytes": peak_memory_bytes(),
            "output": _identity(path),
        }
        tell(json.dumps(facts))
    return 0


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
    _tell_notes(plan, arguments)
    tell(json.dumps({"plan": plan.to_dict()}) if arguments.json else plan.describe())
    return 0


def _tell_notes(plan: Plan, arguments: argparse.Namespace) -> None:
    if not arguments.quiet:
        for text in plan.notes:
            note(f"note: {text}")


def _identity(path: Path) -> dict[str, Any]:
    """Path, hash and size. A folder's hash is that of what `sha256sum *` prints in it."""
    if not path.is_dir():
        return {"path": str(path), "sha256": file_sha256(path), "bytes": path.stat().st_size}
    files = sorted(file for file in path.iterdir() if not file.name.startswith("."))  # a killed run leaves such
    listing = "".join(f"{file_sha256(file)}  {file.name}\n" for file in files)
    size = sum(file.stat().st_size for file in files)
    return {"path": str(path), "sha256": hashlib.sha256(listing.encode()).hexdigest(), "bytes": size}
