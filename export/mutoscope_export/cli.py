"""`mutoscope export`. Knows arguments and how to tell a person what happens. Knows nothing of checkpoints."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from mutoscope.bundle.bundle import Bundle
from mutoscope.commands.arguments import Parser, add_fields, given, in_flags
from mutoscope.errors import MutoscopeError
from mutoscope.terminal import tell

from .options import ExportOptions

_COMPONENTS = ("transformer", "vae", "text_encoder")  # in a message, parts of the checkpoint


def main(argv: Sequence[str]) -> int:
    """Runs the command; `mutoscope.cli` says what an error means."""
    arguments = _parser().parse(argv)
    from .export import REPORT, export_checkpoint  # here, so that --help need not wait for torch
    from .quantization.quantize import quality_table

    _silence_libraries()
    try:
        bundle = export_checkpoint(
            arguments.checkpoint,
            arguments.bundle,
            ExportOptions(**given(arguments, ExportOptions)),
            on_progress=_Progress() if sys.stderr.isatty() else None,
        )
    except MutoscopeError as error:
        spoken_of = [field for field in fields(ExportOptions) if field.name not in _COMPONENTS]
        error.args = (in_flags(str(error), spoken_of),)
        raise
    calibrated = json.loads(bundle.path(REPORT).read_text("utf-8"))["calibrated"]
    if arguments.json:
        tell(json.dumps(_facts(bundle) | calibrated))
    else:
        tell("\n\n".join([*(quality_table(*report) for report in calibrated.items()), str(bundle.root)]))
    return 0


class _Progress:
    """A line on the terminal for each stage, with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def __call__(self, stage: str) -> None:
        with suppress(OSError):  # a closed terminal must not cost hours of export
            print(f"{time.perf_counter() - self._started:7.1f} s  {stage}", file=sys.stderr, flush=True)


def _silence_libraries() -> None:
    """Turns off the bars that the libraries draw while they load weights; the stages say enough."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _facts(bundle: Bundle) -> dict[str, object]:
    return {
        "bundle": str(bundle.root),
        "sha256": bundle.sha256,
        "family": bundle.manifest.family,
        "checkpoint": bundle.manifest.provenance.checkpoint,
        "graphs": [
            {
                "role": graph.role,
                "part": graph.part,
                "precision": graph.precision,
                "file": graph.file,
                "bytes": bundle.size_of(graph),
            }
            for graph in bundle.manifest.graphs
        ],
    }


def _parser() -> Parser:
    parser = Parser(
        "export", "Converts a model checkpoint into a bundle, and compares every graph with the PyTorch network."
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder in the Diffusers layout, or a Hugging Face hub id such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder to write the bundle to")
    parser.add_argument("--json", action="store_true", help="print a summary of the bundle as one JSON object")
    add_fields(parser, ExportOptions)
    return parser
