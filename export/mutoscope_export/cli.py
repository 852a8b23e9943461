"""`mutoscope export`. Knows arguments and how to tell a person what happens. Knows nothing of checkpoints."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mutoscope.bundle.bundle import Bundle
from mutoscope.commands.arguments import Parser, as_type, one_of
from mutoscope.errors import RequestError
from mutoscope.terminal import tell
from mutoscope.values.parameters import BYTES, HEIGHT_WIDTH_FRAMES
from mutoscope_engines.precisions import ON_GPU, PRECISIONS


def main(argv: Sequence[str]) -> int:
    """Runs the command; `mutoscope.cli` says what an error means."""
    arguments = _parser().parse(argv)
    from .export import REPORT, ExportOptions, export_checkpoint
    from .graphs.parts import DEFAULT_PART_BYTES
    from .quantization.calibration import CalibrationOptions  # here, so that --help need not wait for torch
    from .quantization.quantize import quality_table

    _silence_libraries()
    bundle = export_checkpoint(
        arguments.checkpoint,
        arguments.bundle,
        precisions=arguments.precision,
        overwrite=arguments.overwrite,
        options=ExportOptions(
            compact=arguments.compact,
            part_bytes=arguments.part_size or DEFAULT_PART_BYTES,
            calibration=CalibrationOptions(
                prompts=_lines(arguments.calibration_prompts),
                num_inference_steps=arguments.calibration_steps,
                **dict(zip(("height", "width", "num_frames"), arguments.calibration_size or (), strict=False)),
            ),
        ),
        on_progress=_Progress() if sys.stderr.isatty() else None,
    )
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


def _lines(file: Path | None) -> list[str] | None:
    if file is None:
        return None
    try:
        return file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"the prompts in {file} cannot be read: {error}; name a text file, one prompt a line"
        ) from error


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
    on_cpu = [name for name in PRECISIONS if name not in ON_GPU]
    parser.add_argument(
        "--precision",
        nargs="+",
        type=one_of("precision", list(PRECISIONS)),
        metavar="NAME",
        default=["fp32"],
        help=f"precisions of the denoiser: {', '.join(on_cpu)} for CPUs; {', '.join(ON_GPU)} for GPUs (default: fp32)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.add_argument(
        "--compact", action="store_true", help="store weights in half precision where that is exact; same frames"
    )
    parser.add_argument(
        "--part-size",
        type=as_type(BYTES),
        metavar="SIZE",
        help="for GPUs, split denoiser and text encoder into parts of at most this size, such as 4GB, or of one block. "
        "Smaller parts need less host memory to build and slightly more GPU memory to run (default: 8GB)",
    )
    parser.add_argument(
        "--calibration-prompts",
        type=Path,
        metavar="FILE",
        help="for fp8 and int8-static: text file of typical prompts, one per line (default: the checkpoint's own, or 8 "
        "varied ones)",
    )
    parser.add_argument(
        "--calibration-size",
        type=as_type(HEIGHT_WIDTH_FRAMES),
        metavar="HxWxT",
        help="for fp8 and int8-static: height x width x frames of the calibration videos, such as 480x832x81 (default: "
        "the model's default size)",
    )
    parser.add_argument(
        "--calibration-steps",
        type=int,
        metavar="N",
        help="for fp8 and int8-static: denoising steps for each calibration video (default: the model's default)",
    )
    parser.add_argument("--json", action="store_true", help="print a summary of the bundle as one JSON object")
    return parser
