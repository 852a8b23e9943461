"""`mutoscope gpu-check`: what only a GPU can show, on the user's. Knows flags and exit codes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from mutoscope.commands.arguments import Parser, add_bundle, as_type, one_of
from mutoscope.errors import BackendUnavailableError, RequestError
from mutoscope.terminal import tell
from mutoscope.values.parameters import HEIGHT_WIDTH
from mutoscope_engines.device.cuda import cuda_unavailable_because
from mutoscope_engines.names import no_such
from mutoscope_engines.precisions import PRECISIONS

from .part import PARTS, Facts, parts_named
from .runner import Check, run
from .videos import WARM_UP_STEPS

FAILED = 1  # the exit code of a part that failed


def main(argv: Sequence[str]) -> int:
    """`mutoscope gpu-check`. Returns the exit code."""
    arguments = _parser().parse(argv)
    if arguments.steps <= WARM_UP_STEPS:
        raise RequestError(f"--steps must be more than {WARM_UP_STEPS}: the first are not timed; got {arguments.steps}")
    if arguments.time_limit is not None and arguments.time_limit < 1:
        raise RequestError(f"--time-limit must be 1 or more seconds; got {arguments.time_limit}")
    for name in arguments.part:
        if not parts_named([name]):
            raise RequestError(no_such("part", name, list(PARTS)))
    if reason := cuda_unavailable_because():
        raise BackendUnavailableError(f"gpu-check needs an NVIDIA GPU: {reason}")
    size = {name: getattr(arguments, name) for name in ("height", "width", "num_frames")}
    with tempfile.TemporaryDirectory(prefix="mutoscope-gpu-check-") as folder:
        spec = {
            "folder": folder,
            "bundle": str(arguments.bundle) if arguments.bundle else None,
            "precision": arguments.precision,
            "tile": arguments.tile,
            "steps": arguments.steps,
            "request": {name: value for name, value in size.items() if value is not None},
        }
        check = Check(parts_named(arguments.part), spec, arguments.time_limit, arguments.output)
        result = run(check, _tell)
    tell(f"wrote {arguments.output}")
    return FAILED if any(facts["status"] == "failed" for facts in result["parts"].values()) else 0


def _parser() -> Parser:
    parser = Parser(
        "gpu-check",
        "Tests Mutoscope on this machine's GPU and writes one JSON file.",
        epilog="Each part runs in its own process, with a time limit. The JSON file is updated after each part. Parts: "
        + "; ".join(f"{part.name} ({part.purpose})" for part in PARTS.values())
        + ". Exit code 1 means that a part failed, 4 that there is no usable GPU.",
    )
    add_bundle(parser)
    parser.add_argument(
        "--part", nargs="+", metavar="NAME", default=[], help="run only these parts, such as device or video"
    )
    precision = "precision of the denoiser (default: bf16, or fp16 on a GPU without bfloat16)"
    parser.add_argument("--precision", type=one_of("precision", list(PRECISIONS)), metavar="NAME", help=precision)
    parser.add_argument(
        "--steps", type=int, metavar="N", default=20, help=f"denoising steps, more than {WARM_UP_STEPS} (default: 20)"
    )
    tile = "decode on the GPU in tiles of at most this many pixels, such as 480x480"
    parser.add_argument("--tile", type=as_type(HEIGHT_WIDTH), metavar="HxW", help=tile)
    for name, what in (("height", "height"), ("width", "width"), ("num-frames", "length")):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{what} of the video (default: the bundle's)")
    parser.add_argument(
        "--time-limit",
        type=int,
        metavar="SECONDS",
        help="time limit for each part (default: set by the part, at most two hours)",
    )
    default = Path("gpu-check.json")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", default=default, help=f"JSON file to write (default: {default})"
    )
    return parser


def _tell(name: str, facts: Facts) -> None:
    tell(f"{facts['status']:<7}  {name}" + (f": {facts['reason']}" if "reason" in facts else ""))
