"""The predicted peak of GPU memory of whole runs, and the way that each stage would run, for GPUs that are not here.

    python -m benchmarks.predicted_memory --bundle DIR --target rtx40 [--precision bf16] [--height H --width W ...]
                                          [--limits 8GB 12GB 16GB 24GB] [--output FILE.json]

Works from the records of the engines that `mutoscope build` put into the cache; loads none and needs no GPU. Weights
and activations are the compiler's own figures; inputs and outputs are counted from their shapes. What CUDA and the
driver take for themselves, some hundred megabytes, comes on top.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mutoscope.bundle.bundle import Bundle
from mutoscope.commands.arguments import one_of
from mutoscope.commands.next_steps import on_the_command_line
from mutoscope.conditions import load_conditions
from mutoscope.errors import BackendUnavailableError, RequestError
from mutoscope.planning.execution import Execution
from mutoscope.planning.footprints import everywhere
from mutoscope.planning.planner import make_job
from mutoscope.request import VideoRequest
from mutoscope.values.byte_sizes import format_bytes
from mutoscope.values.parameters import BYTES
from mutoscope_bench.cases import PROMPT
from mutoscope_engines.precisions import PRECISIONS
from mutoscope_engines.session import SessionOptions
from mutoscope_engines.targets import find_target
from mutoscope_engines.tensorrt.backend import TensorRtBackend

LIMITS = ("6GB", "8GB", "12GB", "16GB", "24GB", "32GB")


def main(argv: list[str] | None = None) -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predicted_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="for which there are engines in the cache")
    parser.add_argument("--target", required=True, help="that they were built for, such as rtx40")
    parser.add_argument(
        "--precision",
        type=one_of("precision", list(PRECISIONS)),
        default="bf16",
        help="of the denoiser (default: bf16)",
    )
    parser.add_argument("--guidance-scale", type=float, help="above 1 both branches are computed")
    parser.add_argument("--limits", nargs="+", default=list(LIMITS), help="of memory")
    for name in ("height", "width", "num-frames"):
        parser.add_argument(f"--{name}", type=int, help="of the video (default: the bundle's)")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(argv)
    bundle = Bundle.open(arguments.bundle, verify=False)
    sizes = {name: getattr(arguments, name) for name in ("height", "width", "num_frames", "guidance_scale")}
    request = VideoRequest(prompt=PROMPT, seed=0, **{name: value for name, value in sizes.items() if value is not None})
    rows = {
        limit: predicted(bundle, request, arguments.precision, arguments.target, limit) for limit in arguments.limits
    }
    for limit, row in rows.items():
        print(f"{limit:>7}  {_line(row)}")
    report = {"target": arguments.target, "precision": arguments.precision, **sizes, "limits": rows}
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def predicted(bundle: Bundle, request: VideoRequest, precision: str, target: str, limit: str) -> dict[str, Any]:
    """The plan's memory on a GPU of the target, or why there is none."""
    backend = TensorRtBackend("tensorrt-rtx", target=find_target(target))
    limit_bytes = BYTES.read(limit)
    execution = Execution(everywhere(backend, precision), (2, 1), limit_bytes, SessionOptions(threads=1), ())
    try:
        plan = make_job(request, execution, bundle, load_conditions(bundle)).plan
    except (RequestError, BackendUnavailableError) as error:
        return {"refused": on_the_command_line(error)}
    facts = plan.to_dict()
    return {"peak_bytes": facts["memory_peak_bytes"], "keep_loaded": facts["keep_loaded"], "stages": facts["memory"]}


def _line(row: dict[str, Any]) -> str:
    if "refused" in row:
        return str(row["refused"])
    ways = ", ".join(
        f"{name} {facts['name']} {format_bytes(facts['peak_bytes'])}" for name, facts in row["stages"].items()
    )
    return f"peak {format_bytes(row['peak_bytes'])}, {'all loaded' if row['keep_loaded'] else 'in turns'}: {ways}"


if __name__ == "__main__":
    sys.exit(main())
