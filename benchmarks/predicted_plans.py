"""How each stage would run on GPUs of several sizes, and what it would stream: `predicted_peaks` through the planner.

    python -m benchmarks.predicted_plans benchmarks/results/engine_memory/*.json [--limits 8GB 16GB] [--output FILE]

For each target, model and size, with guidance (two branches) and without; also without a limit. A limit is what graphs
may take; CUDA and the driver take some hundred megabytes more, so 8 GB (of 10^9 bytes) are for a card of 8 GiB. Weights
that are streamed need engines built with `--weight-streaming`, which are counted with the same weights and activations.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mutoscope.planning.memory_plan import DoesNotFitError, MemoryOption, Stage, plan_memory
from mutoscope.values.byte_sizes import format_bytes
from mutoscope.values.parameters import BYTES
from mutoscope_engines.tensorrt.backend import KEPT_OF_STREAMED

from .engine_memory import WHOLE
from .predicted_peaks import (
    FACTS,
    Engine,
    activations_of_all_blocks,
    buffers_of_all_blocks,
    denoisers_of_one_target,
    matching,
    open_together,
    read,
    tilings,
    weights_of_all_blocks,
)
from .reporting import write_result

LIMITS = ("8GB", "12GB", "16GB", "24GB")
UNLIMITED = "unlimited"
HOST_BYTES = 32 * 10**9  # of host memory, which decides nothing here
BRANCHES = {True: (2, 1), False: (1,)}  # by guidance: in one call, the fastest first


def plans(engines: Sequence[Engine], limits: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each target, denoiser, size, guidance and limit, and for none, which is `UNLIMITED`."""
    denoisers = denoisers_of_one_target(engines)
    names = [name for name in FACTS if name != "branches"]
    for facts in dict.fromkeys(tuple(getattr(each, name) for name in names) for each in denoisers):
        run = dict(zip(names, facts, strict=True))
        compiled = {each.branches for each in matching(denoisers, **run)}
        for guided, branches in BRANCHES.items():
            if not (compiled >= set(branches) and WHOLE in tilings(engines, run)):
                continue
            stages = list(_stages(engines, run, branches))
            for limit in (*limits, UNLIMITED):
                limit_bytes = 10**15 if limit == UNLIMITED else BYTES.read(limit)
                yield {**run, "guidance": guided, "limit": limit, **_planned(stages, limit_bytes)}


def _planned(stages: Sequence[Stage], limit_bytes: int) -> dict[str, Any]:
    try:
        plan = plan_memory(stages, limit_bytes, HOST_BYTES)
    except DoesNotFitError as error:
        return {"refused": error.stage, "least_bytes": error.option.least_bytes}
    told = ("name", "peak_bytes", "streamed_bytes", "calls_per_step")
    options = {name: {**asdict(option), "peak_bytes": option.peak_bytes} for name, option in plan.options.items()}
    return {
        "peak_bytes": plan.peak_bytes,
        "keep_loaded": plan.keep_loaded,
        "stages": {name: {key: option[key] for key in told} for name, option in options.items()},
    }


def _stages(engines: Sequence[Engine], run: dict[str, Any], branches: Sequence[int]) -> Iterator[Stage]:
    """As `mutoscope.planning.footprints` has them, from what was compiled."""
    whole = open_together(engines, run | {"branches": branches[0]}, WHOLE)
    for name, turns in whole.items():
        if name == "denoiser":
            options = [_of_denoiser(engines, run, count, branches[0]) for count in branches]
        elif name == "vae_decoder":
            tiled = sorted(tilings(engines, run), key=lambda tiles: 1 if tiles == WHOLE else int(tiles.split()[0]))
            found = [(tiles, open_together(engines, run | {"branches": branches[0]}, tiles)[name]) for tiles in tiled]
            options = [_option(engines, label, turns) for label, turns in found]
        else:
            options = [_option(engines, WHOLE, turns)]
        yield Stage(name, _with_streaming(options))


def _of_denoiser(engines: Sequence[Engine], run: dict[str, Any], count: int, branches: int) -> MemoryOption:
    """With so many of its branches in a call."""
    label = f"{count} branch in a call" if count < branches else WHOLE
    turns = open_together(engines, run | {"branches": count}, WHOLE)["denoiser"]
    return replace(_option(engines, label, turns), calls_per_step=branches // count)


def _option(engines: Sequence[Engine], name: str, turns: Sequence[Sequence[Engine]]) -> MemoryOption:
    """The most that is on the device at once."""
    made = []
    for together in turns:
        weights = sum(weights_of_all_blocks(engines, each) for each in together)
        alone = len(together) == 1
        made.append(
            MemoryOption(
                name,
                weight_bytes=weights,
                buffer_bytes=sum(buffers_of_all_blocks(each) for each in together),
                activation_bytes=max(activations_of_all_blocks(engines, each) for each in together),
                streamable_bytes=int(weights * (1 - KEPT_OF_STREAMED)) if alone else 0,
                keepable=len(turns) == 1,
            )
        )
    return max(made, key=lambda option: option.peak_bytes)


def _with_streaming(options: Sequence[MemoryOption]) -> tuple[MemoryOption, ...]:
    streamed = [
        replace(option, name=f"{option.name}, weights streamed") for option in options if option.streamable_bytes
    ]
    return (*(replace(option, streamable_bytes=0) for option in options), *streamed)


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predicted_plans", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="ENGINES.json", help="what engine_memory wrote")
    parser.add_argument("--limits", nargs="+", default=list(LIMITS), help="of memory")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    rows = list(plans(read(given.files), given.limits))
    write_result(given.output, rows, files=[file.name for file in given.files])
    for row in rows:
        print(f"{' '.join(str(value) for value in list(row.values())[:6])}, {row['limit']}: {_told(row)}")
    return 0


def _told(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"the {row['refused']} needs at least {format_bytes(row['least_bytes'])}"
    stages = (
        f"{name} {stage['name']} {format_bytes(stage['peak_bytes'])}{_streamed(stage)}"
        for name, stage in row["stages"].items()
    )
    return "; ".join(stages)


def _streamed(stage: dict[str, Any]) -> str:
    if not stage["streamed_bytes"]:
        return ""
    often = " twice a step" if stage["calls_per_step"] == 2 else ""
    return f" ({format_bytes(stage['streamed_bytes'])} streamed{often})"


if __name__ == "__main__":
    sys.exit(main())
