"""`mutoscope export`. Knows arguments and how to tell a person what happens. Knows nothing of checkpoints."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mutoscope.bundle.bundle import Bundle
from mutoscope.commands.arguments import Parser, as_type
from mutoscope.errors import RequestError
from mutoscope.terminal import tell
from mutoscope.values.parameters import BYTES, HEIGHT_WIDTH_FRAMES


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
    parser = Parser("export", "Turns a checkpoint into a bundle, and checks every graph against its network.")
    parser.add_argument("checkpoint", help="a folder in the Diffusers layout, or a hub id")
    parser.add_argument("bundle", type=Path, help="the folder to write")
    parser.add_argument(
        "--precision",
        nargs="+",
        default=["fp32"],
        help="of the denoiser: fp32, int8, bf16-cpu on CPUs; bf16, fp16, fp8, int8-static on GPUs",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    parser.add_argument(
        "--compact", action="store_true", help="store weights that lose nothing by it in half precision; same frames"
    )
    parser.add_argument(
        "--part-size",
        type=as_type(BYTES),
        metavar="SIZE",
        help="write denoiser and text encoder for GPUs in parts of at most so much, such as 4GB, or of one block; each "
        "becomes an engine: less host memory to build, some more of the GPU's to run; 8GB when not given",
    )
    parser.add_argument(
        "--calibration-prompts",
        type=Path,
        metavar="FILE",
        help="for fp8 and int8-static: one prompt a line, of what will be asked for",
    )
    parser.add_argument(
        "--calibration-size",
        type=as_type(HEIGHT_WIDTH_FRAMES),
        metavar="HxWxT",
        help="for these: the size of use, when it is not the default",
    )
    parser.add_argument("--calibration-steps", type=int, metavar="N", help="for these: of each denoising run")
    parser.add_argument("--json", action="store_true", help="print what was made as one JSON object")
    return parser
