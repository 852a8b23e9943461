"""`mutoscope export`. Knows arguments and how to tell a person what happens. Knows nothing of checkpoints."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mutoscope.bundle import Bundle
from mutoscope.errors import MutoscopeError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stopped:  # --help, or wrong usage, which argparse has told
        return int(stopped.code or 0)
    from .export import export_checkpoint  # here, so that --help need not wait for torch

    _silence_libraries()
    try:
        bundle = export_checkpoint(
            arguments.checkpoint,
            arguments.bundle,
            precisions=arguments.precision,
            overwrite=arguments.overwrite,
            compact=arguments.compact,
            on_progress=_Progress(),
        )
    except MutoscopeError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; nothing was published", file=sys.stderr)
        return 130
    if arguments.json:
        print(json.dumps(_facts(bundle)))
    else:
        print(f"{bundle.root}")
    return 0


class _Progress:
    """A line on standard error for each stage, with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def __call__(self, stage: str, fraction: float | None) -> None:
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mutoscope export",
        description="Turns a checkpoint into a bundle, and checks every graph against its network.",
    )
    parser.add_argument("checkpoint", help="a folder in the Diffusers layout, or a hub id")
    parser.add_argument("bundle", type=Path, help="the folder to write")
    parser.add_argument("--precision", nargs="+", default=["fp32"], help="of the denoiser: fp32, int8")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    parser.add_argument(
        "--compact", action="store_true", help="store weights that lose nothing by it in half precision; same frames"
    )
    parser.add_argument("--json", action="store_true", help="print what was made as one JSON object")
    return parser
