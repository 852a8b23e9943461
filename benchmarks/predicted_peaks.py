"""The predicted peak of GPU memory of whole runs at real sizes, from what `engine_memory` measured of their engines.

    python -m benchmarks.predicted_peaks benchmarks/results/engine_memory/*.json [--output FILE.json]

`in_turns`: one stage after the other is on the device, weights, activations, inputs and outputs. `all_loaded`: the
weights of all stay, and they share the largest activations. Where only some blocks of a network were compiled, its
weights are those that `model_sizes` counts, and two numbers of blocks give the text encoder's activations; those of
the denoiser hardly depend on it. `lora_rank` is not 0 for the form of a denoiser that LoRAs change: A and B of all
blocks are among its inputs. A network in parts holds the weights of all of them, and the largest activations of one. A
graph that was not compiled for a target counts as for `REFERENCE`, and a denoiser that was not compiled as that of the
model which it is like; the row says so. Few blocks are one engine; where export cuts a network, hidden states that pass
from part to part come on top. CUDA and the driver take some hundred megabytes more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from mutoscope.bundle.contract import DECODE, ROLES, TILED
from mutoscope.values.byte_sizes import format_bytes
from mutoscope_engines.precisions import base_precision

from .engine_memory import WHOLE
from .model_sizes import lora_rows_of_a_block, weight_bytes
from .real_sizes import MODELS, UMT5_XXL
from .reporting import write_result

DECODER = [name for name, role in ROLES.items() if role.stage == DECODE]

REFERENCE = "rtx40"
COMPONENTS = {"denoiser": "transformer", "text_encoder": "text_encoder"}  # that become graphs of these roles
# Of a denoiser, by which runs differ.
FACTS = ("model", "target", "precision", "shapes", "branches", "parts", "lora_rank")
LORA_BYTES = 2  # A and B are float16 beside a network in 16 bits


@dataclass(frozen=True)
class Engine:
    """One that was compiled, of a network with so many blocks."""

    role: str
    model: str  # whose denoiser or VAE it is; all have the same text encoder
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
    lora_rank: int = 0  # of all LoRAs together; 0 where none changes it
    engine_bytes: int = 0  # on disk; 0 where it was not recorded, as the next
    graph_bytes: int = 0  # of its graph, with the weights
    counted_as: str = ""  # the model that was compiled in place of this


SUMS = ("weight_bytes", "engine_bytes", "graph_bytes")  # of all parts together
FOUND = [name for name in Engine.__annotations__ if name not in ("blocks", "all_blocks", "parts", "counted_as")]


def read(files: Sequence[Path]) -> list[Engine]:
    """The engines in the results of `engine_memory`, each with all its parts.

    A model has the denoisers of the one that it is like, too, if its other graphs were compiled: where its own was, in
    the precisions of those, as far as they differ in something else.
    """
    engines = []
    for result in (json.loads(file.read_text()) for file in files):
        model = result["model"]
        depths = {"denoiser": MODELS[model].transformer["num_layers"], "text_encoder": UMT5_XXL["num_layers"]}
        for rows in _by_engine(result["engines"]):
            depth = depths.get(rows[0]["role"], 0)
            told = result | rows[0]
            facts = {name: told[name] for name in FOUND if name in told}
            facts |= {"blocks": min(result["blocks"] or depth, depth), "all_blocks": depth, "parts": len(rows)}
            facts |= {name: sum(row[name] for row in rows) for name in SUMS if name in told}
            facts |= {"activation_bytes": max(row["activation_bytes"] for row in rows)}
            engines.append(Engine(**facts))
    denoisers = [each for each in engines if each.role == "denoiser"]
    for name, other in MODELS.items():
        roles = {each.role for each in engines if MODELS[each.model].vae == other.vae}
        if not (other.denoiser_like and roles.issuperset(other.picture_roles)):
            continue
        own = matching(denoisers, model=name)
        like = [
            replace(each, model=name, counted_as=each.model) for each in matching(denoisers, model=other.denoiser_like)
        ]
        have, precisions = {_facts(each) for each in own}, {each.precision for each in own}
        engines += [each for each in like if not own or (each.precision in precisions and _facts(each) not in have)]
    return engines


def _facts(denoiser: Engine) -> tuple[Any, ...]:
    return tuple(getattr(denoiser, name) for name in FACTS)


def _by_engine(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of parts of one network together."""
    networks: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        facts = (row.get(name) for name in ("role", "target", "shapes", "branches", "tiles"))
        networks.setdefault(tuple(facts), []).append(row)
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


def weights_of_all_blocks(engines: Sequence[Engine], engine: Engine) -> int:
    """The weights of all blocks of this engine's network, in bytes: as compiled, or else as counted."""
    known = _by_blocks(engines, engine, "weight_bytes")
    if engine.all_blocks in known:
        return known[engine.all_blocks]
    return counted(engine.model, engine.role, engine.precision)


@cache
def counted(model: str, role: str, precision: str) -> int:
    """The weights of the graph of a role that its configuration asks for, in bytes."""
    return weight_bytes(MODELS[model], COMPONENTS[role], precision)


def buffers_of_all_blocks(engine: Engine) -> int:
    """Its inputs and outputs, with A and B of the blocks that were not compiled, in bytes."""
    if not engine.lora_rank:
        return engine.buffer_bytes
    of_a_block = _lora_rows(engine.model) * engine.lora_rank * LORA_BYTES
    return engine.buffer_bytes + (engine.all_blocks - engine.blocks) * of_a_block


@cache
def _lora_rows(model: str) -> int:
    return lora_rows_of_a_block(MODELS[model])


def activations_of_all_blocks(engines: Sequence[Engine], engine: Engine) -> int:
    """The activations of all blocks of this engine's network, in bytes. Only those of text encoders depend on them.

    Raises:
        ValueError: neither all were compiled nor two numbers of them.
    """
    if engine.role != "text_encoder":
        return engine.activation_bytes
    known = _by_blocks(engines, engine, "activation_bytes")
    if engine.all_blocks in known:
        return known[engine.all_blocks]
    if len(known) < 2:
        raise ValueError(f"the {engine.role} in {engine.precision} was compiled with {list(known)} blocks alone")
    return extended(known, engine.all_blocks)


def extended(known: Mapping[int, int], blocks: int) -> int:
    """A figure of a network of so many blocks, from those of the fewest and the most that were compiled."""
    few, more = min(known), max(known)
    return round(known[few] + (known[more] - known[few]) / (more - few) * (blocks - few))


def _by_blocks(engines: Sequence[Engine], engine: Engine, name: str) -> dict[int, int]:
    """A figure of the same network by how many of its blocks were compiled, of the engines most like this one."""
    model = {"model": engine.model} if engine.role != "text_encoder" else {}
    alike = matching(engines, role=engine.role, precision=engine.precision, counted_as=engine.counted_as, **model)
    alike.sort(key=lambda each: (each.parts == engine.parts, each.branches == engine.branches))
    return {each.blocks: getattr(each, name) for each in alike}


def tilings(engines: Sequence[Engine], run: Mapping[str, Any]) -> list[str]:
    """The ways of decoding of which there are engines for this run, which has the names of `FACTS`."""
    found = matching(_of_vae(engines, run), role=TILED[0], shapes=run["shapes"], precision=_base(run))
    return list(dict.fromkeys(each.tiles for each in found))


def open_together(engines: Sequence[Engine], run: Mapping[str, Any], tiles: str) -> dict[str, list[list[Engine]]]:
    """What each stage of a run has on the device at once, one list after the other.

    Raises:
        ValueError: an engine that it needs was not compiled.
    """
    of_vae, target, base = _of_vae(engines, run), run["target"], _base(run)
    vae = {"precision": base, "shapes": run["shapes"]}
    encoder = best(engines, target, role="text_encoder", precision=base, branches=run["branches"])
    seen = [best(engines, target, role="image_encoder", model=run["model"])] if MODELS[run["model"]].sees else []
    pictures = [best(of_vae, target, role=role, **vae) for role in MODELS[run["model"]].picture_roles]
    decoder = [best(of_vae, target, role=role, tiles=tiles if role in TILED else WHOLE, **vae) for role in DECODER]
    # In tiles the features come first, and then the tiles: what is open for the one is closed for the other.
    parts = [[each for each in decoder if (each.role in TILED) == tiled] for tiled in (False, True)]
    return {
        "text_encoder": [[encoder]],
        **({"image_encoder": [seen]} if seen else {}),
        **({"vae_encoder": [pictures]} if pictures else {}),
        "denoiser": [[best(engines, role="denoiser", **run)]],
        "vae_decoder": [decoder] if tiles == WHOLE else parts,
    }


def _base(run: Mapping[str, Any]) -> str:
    """The precision of all but the denoiser."""
    return base_precision(run["precision"])


def _of_vae(engines: Sequence[Engine], run: Mapping[str, Any]) -> list[Engine]:
    """The engines of models that have the same VAE."""
    return [each for each in engines if MODELS[each.model].vae == MODELS[run["model"]].vae]


def denoisers_of_one_target(engines: Sequence[Engine]) -> list[Engine]:
    """Those of several take as much as those of each."""
    return [each for each in matching(engines, role="denoiser") if "," not in each.target]


def peaks(engines: Sequence[Engine]) -> Iterator[dict[str, Any]]:
    """A row for each target, denoiser, size and way of decoding of which there are engines."""
    runs = dict.fromkeys(map(_facts, denoisers_of_one_target(engines)))
    for facts in runs:
        run = dict(zip(FACTS, facts, strict=True))
        for tiles in tilings(engines, run):
            opened = open_together(engines, run, tiles)
            stages = {name: max(_bytes(engines, some) for some in turns) for name, turns in opened.items()}
            every = [each for turns in opened.values() for some in turns for each in some]
            by_role = {each.role: each for each in every}
            yield {
                **run,
                "decoder": tiles,
                "text_encoder_parts": by_role["text_encoder"].parts,
                "blocks_compiled": by_role["denoiser"].blocks,
                "stages": stages,
                "in_turns_bytes": max(stages.values()),
                "all_loaded_bytes": _bytes(engines, every) if tiles == WHOLE else None,
                "counted_as_for": [f"{each.role} for {each.target}" for each in every if each.target != run["target"]],
                "counted_as": by_role["denoiser"].counted_as,
            }


def _bytes(engines: Sequence[Engine], together: Sequence[Engine]) -> int:
    """With these on the device at once."""
    held = sum(weights_of_all_blocks(engines, each) + buffers_of_all_blocks(each) for each in together)
    return held + max(activations_of_all_blocks(engines, each) for each in together)


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
