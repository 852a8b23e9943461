"""How large the folders are that a product ships: bundles with engines for RTX 40, for RTX 50 and for both, by part.

    python -m benchmarks.shipped_sizes benchmarks/results/engine_memory/*.json [--output FILE.json]

The denoiser is in fp8, all else in bf16; engines are for both guidance branches in a call. `graph_bytes` are the
weights of the graphs, which `mutoscope build --lean` leaves out; what a graph has beside them is less than two
thousandths. `engine_bytes` are the engines as they lie in the folder. Where some blocks of a network were compiled,
weights are those that `model_sizes` counts, and what an engine has beside them, which is linear in the blocks, follows
from two numbers of blocks. Engines that were not compiled for a target count as for `REFERENCE`; the row says so.
Manifest, index and tokenizer are not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mutoscope_engines.precisions import base_precision

from .engine_memory import WHOLE
from .predicted_peaks import DECODER, REFERENCE, Engine, extended, matching, read, weights_of_all_blocks
from .real_sizes import MODELS
from .reporting import write_result
from .results_figures import Result, gigabytes

FOLDERS = {"1.3B": "480x832x81", "5B": "704x1280x121"}  # and the largest video of their engines
TARGETS = {"rtx40": "RTX 40", "rtx50": "RTX 50", "rtx40,rtx50": "both"}
PRECISION = "fp8"
BRANCHES = 2
PARTS = {"text_encoder": "text encoder", "denoiser": "denoiser", "vae": "VAE"}


def sizes(engines: Sequence[Engine]) -> Iterator[dict[str, Any]]:
    """A row for each graph of each folder.

    Raises:
        ValueError: it was not compiled.
    """
    for model, shapes in FOLDERS.items():
        for target in TARGETS:
            for role in ("text_encoder", "denoiser", *MODELS[model].picture_roles, *DECODER):
                found = _compiled(engines, role, model, shapes, target)
                yield {
                    "model": model,
                    "shapes": shapes,
                    "target": target,
                    "role": role,
                    "graph_bytes": weights_of_all_blocks(engines, found[0]),
                    "engine_bytes": engine_bytes(engines, found),
                    "blocks_compiled": [each.blocks for each in found],
                    "counted_as_for": found[0].target,
                }


def _compiled(engines: Sequence[Engine], role: str, model: str, shapes: str, target: str) -> list[Engine]:
    """Those of the role: one of all its blocks, or else one of each number of them that was compiled."""
    wanted: dict[str, Any] = {"role": role, "tiles": WHOLE, "lora_rank": 0}
    if role == "text_encoder":  # the same in all models
        wanted |= {"branches": BRANCHES}
    elif role == "denoiser":
        wanted |= {"branches": BRANCHES, "model": model, "shapes": shapes, "parts": 1}
    else:
        wanted |= {"shapes": shapes}
        engines = [each for each in engines if MODELS[each.model].vae == MODELS[model].vae]
    wanted["precision"] = PRECISION if role == "denoiser" else base_precision(PRECISION)
    for one in (target, REFERENCE):
        found = {each.blocks: each for each in matching(engines, target=one, **wanted)}
        whole = [each for each in found.values() if each.blocks == each.all_blocks]
        if whole or len(found) > 1:
            return whole or list(found.values())
    raise ValueError(f"the {role} of {model} was compiled for {target} and {REFERENCE} with {list(found)} blocks alone")


def engine_bytes(engines: Sequence[Engine], found: Sequence[Engine]) -> int:
    """Of all blocks of a network, from engines of several numbers of them, or from the one of all."""
    some = found[0]
    if some.blocks == some.all_blocks:
        return some.engine_bytes
    beside = {each.blocks: each.engine_bytes - each.weight_bytes for each in found}
    return weights_of_all_blocks(engines, some) + extended(beside, some.all_blocks)


def folders_table(result: Result) -> str:
    """By part of each bundle: its graphs, and its engines for each target; and what a product ships."""
    targets = " | ".join(f"engines for {name}" for name in TARGETS.values())
    lines = [f"| bundle | part | graphs | {targets} |", "|---" * (3 + len(TARGETS)) + "|"]
    for model, shapes in FOLDERS.items():
        rows = [row for row in result["rows"] if row["model"] == model]
        columns = [("rtx40", "graph_bytes"), *((target, "engine_bytes") for target in TARGETS)]
        parts = {label: [_bytes(rows, target, part, name) for target, name in columns] for part, label in PARTS.items()}
        graphs, *engines = map(sum, zip(*parts.values(), strict=True))
        told = {label: list(map(gigabytes, sizes)) for label, sizes in parts.items()}
        told["**without graphs**, as `--lean` makes it"] = ["-", *map(gigabytes, engines)]
        told["**graphs and engines**"] = [gigabytes(graphs), *(gigabytes(size + graphs) for size in engines)]
        for label, cells in told.items():
            bundle = f"Wan {model}, {shapes}" if label == PARTS["text_encoder"] else ""
            lines.append(f"| {bundle} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _bytes(rows: Sequence[Result], target: str, part: str, name: str) -> int:
    return sum(row[name] for row in rows if row["target"] == target and row["role"].startswith(part))


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shipped_sizes", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="ENGINES.json", help="what engine_memory wrote")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    write_result(given.output, sizes(read(given.files)), files=[file.name for file in given.files])
    return 0


if __name__ == "__main__":
    sys.exit(main())
