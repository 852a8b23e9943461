"""The predicted peak of GPU memory of whole runs at real sizes, from what `engine_memory` measured of their engines.

    python -m benchmarks.predicted_peaks benchmarks/results/engine_memory/*.json [--output FILE.json]

`in_turns`: one stage after the other is on the device, weights, activations, inputs and outputs. `all_loaded`: the
weights of all stay, and they share the largest activations. Where only some blocks of a network were compiled, two
numbers of blocks give its weights, which are linear in them but in eight bits, and the text encoder's activations;
those of the denoiser hardly depend on it. A network in parts holds the weights of all of them, and the largest
activations of one. A graph that was not compiled for a target counts as for `REFERENCE`, and the row says which. CUDA
and the driver take some hundred megabytes more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutoscope.bundle.contract import DECODE, ROLES, TILED
from mutoscope.values.byte_sizes import format_bytes
from mutoscope_engines.precisions import base_precision

from .engine_memory import WHOLE
from .real_sizes import TRANSFORMERS, UMT5_XXL
from .reporting import write_result

DECODER = [name for name, role in ROLES.items() if role.stage == DECODE]

REFERENCE = "rtx40"
FACTS = ("model", "target", "precision", "shapes", "branches", "parts")  # of a denoiser, by which runs differ


@dataclass(frozen=True)
class Engine:
    """One that was compiled, of a network with so many blocks."""

    role: str
    model: str  # whose denoiser it is; all have the same text encoder and VAE
    blocks: int
    all_blocks: int
    precision: str
    target: str
    shapes: str
    branches: int
    tiles: str
    weight_bytes: int
    activation_bytes: int
    buffer_bytes: int
    parts: int


def read(files: Sequence[Path]) -> list[Engine]:
    """The engines in the results of `engine_memory`, each with all its parts."""
    engines = []
    for result in (json.loads(file.read_text()) for file in files):
        model = result["model"]
        depths = {"denoiser": TRANSFORMERS[model]["num_layers"], "text_encoder": UMT5_XXL["num_layers"]}
        for rows in _by_engine(result["engines"]):
            depth = depths.get(rows[0]["role"], 0)
            facts = {name: rows[0][name] for name in Engine.__annotations__ if name in rows[0]}
            facts |= {"blocks": min(result["blocks"] or depth, depth), "all_blocks": depth, "parts": len(rows)}
            facts |= {"weight_bytes": sum(row["weight_bytes"] for row in rows)}
            facts |= {"activation_bytes": max(row["activation_bytes"] for row in rows)}
            engines.append(Engine(**facts, model=model, precision=result["precision"], target=result["target"]))
    return engines


def _by_engine(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of parts of one network together."""
    networks: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        networks.setdefault(tuple(row[name] for name in ("role", "shapes", "branches", "tiles")), []).append(row)
    return list(networks.values())


def matching(engines: Sequence[Engine], **wanted: Any) -> list[Engine]:
    """Those engines whose facts are the wanted ones."""
    return [each for each in engines if all(getattr(each, name) == value for name, value in wanted.items())]


def best(engines: Sequence[Engine], target: str, **wanted: Any) -> Engine:
    """For the target or else for `REFERENCE`: of the most blocks, and of those the one in the fewest parts.

    Raises:
        ValueError: none was compiled.
    """
    found = matching(engines, target=target, **wanted) or matching(engines, target=REFERENCE, **wanted)
    if not found:
        raise ValueError(f"no engine was compiled for {target} or {REFERENCE} with {wanted}")
    return max(found, key=lambda each: (each.blocks, -each.parts))


def of_all_blocks(engines: Sequence[Engine], engine: Engine, name: str) -> int:
    """A figure of all blocks of this engine's network.

    Raises:
        ValueError: neither all were compiled in its precision, nor, where all blocks are alike, two numbers of them.
    """
    model = {"model": engine.model} if engine.role == "denoiser" else {}
    alike = matching(engines, role=engine.role, precision=engine.precision, parts=engine.parts, **model)
    known = {each.blocks: getattr(each, name) for each in alike if each.branches == engine.branches}
    if len(known) < 2:
        known |= {each.blocks: getattr(each, name) for each in alike}
    if engine.all_blocks in known:
        return known[engine.all_blocks]
    if len(known) < 2 or engine.precision != base_precision(engine.precision):  # whose first and last blocks stay wide
        raise ValueError(f"the {engine.role} in {engine.precision} was compiled with {list(known)} blocks alone")
    few, more = min(known), max(known)
    return round(known[few] + (engine.all_blocks - few) * (known[more] - known[few]) / (more - few))


def peaks(engines: Sequence[Engine]) -> Iterator[dict[str, Any]]:
    """A row for each target, denoiser, size and way of decoding of which there are engines."""
    runs = dict.fromkeys(tuple(getattr(each, name) for name in FACTS) for each in matching(engines, role="denoiser"))
    for run in runs:
        wanted = dict(zip(FACTS, run, strict=True))
        target, precision, branches = (wanted[name] for name in ("target", "precision", "branches"))
        base, video = base_precision(precision), {"shapes": wanted["shapes"]}
        denoiser = best(engines, role="denoiser", **wanted)
        encoder = best(engines, target, role="text_encoder", precision=base, branches=branches)
        for tiles in dict.fromkeys(each.tiles for each in matching(engines, role=TILED[0], precision=base, **video)):
            decoder = [
                best(engines, target, role=role, precision=base, tiles=tiles if role in TILED else WHOLE, **video)
                for role in DECODER
            ]
            # In tiles the features come first, and then the tiles: what is open for the one is closed for the other.
            parts = [decoder] if tiles == WHOLE else [[each for each in decoder if (each.role in TILED) == tiled]
                                                      for tiled in (False, True)]  # fmt: skip
            stages = {
                "text_encoder": _bytes(engines, [encoder]),
                "denoiser": _bytes(engines, [denoiser]),
                "vae_decoder": max(_bytes(engines, part) for part in parts),
            }
            every = [encoder, denoiser, *decoder]
            yield {
                **wanted,
                "decoder": tiles,
                "text_encoder_parts": encoder.parts,
                "blocks_compiled": denoiser.blocks,
                "stages": stages,
                "in_turns_bytes": max(stages.values()),
                "all_loaded_bytes": _bytes(engines, every) if tiles == WHOLE else None,
                "counted_as_for": [f"{each.role} for {each.target}" for each in every if each.target != target],
            }


def _bytes(engines: Sequence[Engine], together: Sequence[Engine]) -> int:
    """With these on the device at once."""
    held = sum(of_all_blocks(engines, each, "weight_bytes") + each.buffer_bytes for each in together)
    return held + max(
        of_all_blocks(engines, each, "activation_bytes") if each.role == "text_encoder" else each.activation_bytes
        for each in together
    )


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predicted_peaks", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="ENGINES.json", help="what engine_memory wrote")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    rows = list(peaks(read(given.files)))
    write_result(given.output, rows, files=[file.name for file in given.files])
    for row in rows:
        stages = ", ".join(f"{name} {format_bytes(size)}" for name, size in row["stages"].items())
        what = " ".join(str(row[name]) for name in FACTS)
        print(f"{what}, decoded {row['decoder']}: {format_bytes(row['in_turns_bytes'])} ({stages})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
