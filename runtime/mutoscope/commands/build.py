"""`mutoscope build`: engines for GPUs, ahead of time and on any machine. Knows what is told to whom."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from mutoscope_engines.cache.engine_cache import EngineCache
from mutoscope_engines.cache.record import EngineReport

from ..building.build import BuildOptions, build_engine, plan_engines
from ..building.shipping import refuse_existing, ship_engines
from ..builtin import bundle_path
from ..bundle.bundle import Bundle
from ..errors import RequestError
from ..progress import Progress
from ..terminal import format_table, note, tell
from ..values.byte_sizes import format_bytes
from .arguments import Parser, add_bundle, add_fields, given


def main(argv: Sequence[str]) -> int:
    """`mutoscope build`. Returns the exit code."""
    arguments = _parser().parse(argv)
    options = _options(arguments)
    lean = None if options.lean is None else Path(options.lean)
    cache = EngineCache()
    reports = []
    with Progress(sys.stderr, quiet=arguments.quiet) as progress:
        progress.start("checking the bundle")
        bundle = Bundle.open(arguments.bundle or bundle_path())
        jobs = plan_engines(bundle, options)
        for number, job in enumerate(jobs, 1):
            progress.start(f"building {number}/{len(jobs)} {job}")
            report, built = build_engine(bundle, job, options, cache, progress.tick)
            reports.append(report)
            progress.clear()
            if not arguments.quiet:
                note(_said(report, built))
    ships = options.into_bundle or lean is not None
    shipped = {"engines_sha256": ship_engines(bundle, jobs, cache, lean)} if ships else {}
    removed = cache.trim(keep=[job.identity.digest for job in jobs])
    if removed and not arguments.quiet:
        note(
            f"note: deleted the {removed} least recently used engines to keep the cache within "
            f"{format_bytes(cache.limit_bytes)}"
        )
    if arguments.report:
        tell(_table(reports))
    if arguments.json:
        tell(json.dumps({"engines": [asdict(report) for report in reports], **shipped}))
    elif shipped:
        tell(f"--engines-sha256 {shipped['engines_sha256']}")
    return 0


def _options(arguments: Namespace) -> BuildOptions:
    chosen = given(arguments, BuildOptions)
    if "target" not in chosen:
        raise RequestError("--target is missing: which GPUs the engines are for, such as --target rtx40,rtx50")
    options = BuildOptions(**chosen)
    if options.into_bundle and options.lean is not None:
        raise RequestError("--into-bundle and --lean are both given; give one of them")
    if options.into_bundle and arguments.bundle is None:
        raise RequestError("--into-bundle needs a bundle of yours: the built-in one is a part of the installation")
    if options.lean is not None:
        refuse_existing(Path(options.lean))
    return options


def _parser() -> Parser:
    parser = Parser(
        "build",
        "Compiles every graph of a bundle into engines for GPUs. The default compiler needs no GPU.",
        epilog="The bundle must contain graphs in the chosen precision; the built-in bundle has bf16. Engines are "
        "stored in the folder MUTOSCOPE_CACHE (default: ~/.cache/mutoscope), up to MUTOSCOPE_CACHE_GB gigabytes "
        "(default: 64). Engines in the cache are not built again. After Ctrl-C, finished engines stay in the cache.",
    )
    add_bundle(parser)
    parser.add_argument(
        "--report", action="store_true", help="print a table of each engine's memory, size and build time"
    )
    parser.add_argument("--json", action="store_true", help="print the same facts as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors to standard error")
    add_fields(parser, BuildOptions)
    return parser


def _said(report: EngineReport, built: bool) -> str:
    what = f"{report.graph} {report.precision} for {report.target}"
    if not built:
        return f"{what} is already in the cache"
    return f"{what} built in {report.build_s:.1f} s, {format_bytes(report.activation_bytes)} of activations"


def _table(reports: Sequence[EngineReport]) -> str:
    names = [field.name for field in fields(EngineReport)]
    rows = [
        [format_bytes(value) if name.endswith("_bytes") else str(value) for name, value in asdict(report).items()]
        for report in reports
    ]
    return format_table([name.removesuffix("_bytes") for name in names], rows)
