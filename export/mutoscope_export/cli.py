"""`mutoscope export`. Knows arguments and how to tell a person what happens. Knows nothing of checkpoints."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mutoscope.bundle import Bundle
from mutoscope.commands.arguments import Parser
from mutoscope.commands.report import tell


def main(argv: Sequence[str]) -> int:
    """Runs the command; `mutoscope.cli` says what an error means."""
    arguments = _parser().parse(argv)
    from .export import export_checkpoint  # here, so that --help need not wait for torch

    _silence_libraries()
    bundle = export_checkpoint(
        arguments.checkpoint,
        arguments.bundle,
        precisions=arguments.precision,
        overwrite=arguments.overwrite,
        compact=arguments.compact,
        on_progress=_Progress() if sys.stderr.isatty() else None,
    )
    tell(json.dumps(_facts(bundle)) if arguments.json else str(bundle.root))
    return 0


class _Progress:
    """A line on the terminal for each stage, with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def __call__(self, stage: str, fraction: float | None = None) -> None:
        share = "" if fraction is None else f" {fraction:.0%}"
        print(f"{time.perf_counter() - self._started:7.1f} s  {stage}{share}", file=sys.stderr, flush=True)


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
            {"role": graph.role, "precision": graph.precision, "file": graph.file, "bytes": bundle.size_of(graph)}
            for graph in bundle.manifest.graphs
        ],
    }


def _parser() -> Parser:
    parser = Parser("export", "Turns a checkpoint into a bundle, and checks every graph against its network.")
    parser.add_argument("checkpoint", help="a folder in the Diffusers layout, or a hub id")
    parser.add_argument("bundle", type=Path, help="the folder to write")
    parser.add_argument("--precision", nargs="+", default=["fp32"], help="of the denoiser: fp32, int8, bf16, fp16")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    parser.add_argument(
        "--compact", action="store_true", help="store weights that lose nothing by it in half precision; same frames"
    )
    parser.add_argument("--json", action="store_true", help="print what was made as one JSON object")
    return parser
