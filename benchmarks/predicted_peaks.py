"""The predicted peak of GPU memory of whole runs at real sizes, from what `engine_memory` measured of their engines.

    python -m benchmarks.predicted_peaks benchmarks/results/engine_memory/*.json [--output FILE.json]

`in_turns`: one stage after the other is on the device, weights, activations, inputs and outputs. `all_loaded`: the
weights of all stay, and they share the largest activations. Where only some blocks of a network were compiled, two
numbers of blocks give its weights, which are linear in them, and the text encoder's activations; those of the denoiser
hardly depend on it. In eight bits some blocks at the ends stay as wide as in the base precision, from which their
weights come. A network in parts holds the weights of all of them, and the largest activations of one. A graph that was
not compiled for a target counts as for `REFERENCE`, and a denoiser that was not compiled as that of the model which it
is like; the row says so. CUDA and the driver take some hundred megabytes more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mutoscope.bundle.contract import DECODE, ROLES, TILED
from mutoscope.values.byte_sizes import format_bytes
from mutoscope_engines.precisions import base_precision

from .engine_memory import WHOLE
from .real_sizes import MODELS, UMT5_XXL
from .reporting import write_result

DECODER = [name for name, role in ROLES.items() if role.stage == DECODE]

REFERENCE = "rtx40"
FACTS = ("model", "target", "precision", "shapes", "branches", "parts")  # of a denoiser, by which runs differ


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
    counted_as: str = ""  # the model that was compiled in place of this


def read(files: Sequence[Path]) -> list[Engine]:
    """The engines in the results of `engine_memory`, each with all its parts.

    A model whose denoiser was not compiled has those of the one that it is like, if its other graphs were.
    """
    engines = []
    for result in (json.loads(file.read_text()) for file in files):
        model = result["model"]
        depths = {"denoiser": MODELS[model].transformer["num_layers"], "text_encoder": UMT5_XXL["num_layers"]}
        for rows in _by_engine(result["engines"]):
            depth = depths.get(rows[0]["role"], 0)
            facts = {name: rows[0][name] for name in Engine.__annotations__ if name in rows[0]}
            facts |= {"blocks": min(result["blocks"] or depth, depth), "all_blocks": depth, "parts": len(rows)}
            facts |= {"weight_bytes": sum(row["weight_bytes"] for row in rows)}
            facts |= {"activation_bytes": max(row["activation_bytes"] for row in rows)}
            engines.append(Engine(**facts, model=model, precision=result["precision"], target=result["target"]))
    denoisers = [each for each in engines if each.role == "denoiser"]
    for name, other in MODELS.items():
        roles = {each.role for each in engines if MODELS[each.model].vae == other.vae}
        if name in {each.model for each in denoisers} or not roles.issuperset(other.picture_roles):
            continue
        like = [each for each in denoisers if each.model == other.denoiser_like]
        engines += [replace(each, model=name, counted_as=each.model) for each in like]
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


def weights_of_all_blocks(engines: Sequence[Engine], engine: Engine) -> int:
    """The weights of all blocks of this engine's network, in bytes.

    Raises:
        ValueError: neither all were compiled in its precision, nor two numbers of them in its base.
    """
    known = _by_blocks(engines, engine, "weight_bytes", engine.precision)
    if engine.all_blocks in known:
        return known[engine.all_blocks]
    rest, wide = _line(engine, _by_blocks(engines, engine, "weight_bytes", base_precision(engine.precision)))
    if engine.precision == base_precision(engine.precision):
        return round(rest + wide * engine.all_blocks)
    kept, all_kept = (2 * _kept(engine.precision, blocks) for blocks in (engine.blocks, engine.all_blocks))
    narrow = (engine.weight_bytes - rest - wide * kept) / (engine.blocks - kept)
    return round(rest + wide * all_kept + narrow * (engine.all_blocks - all_kept))


def activations_of_all_blocks(engines: Sequence[Engine], engine: Engine) -> int:
    """The activations of all blocks of this engine's network, in bytes. Only those of text encoders depend on them.

    Raises:
        ValueError: neither all were compiled nor two numbers of them.
    """
    if engine.role != "text_encoder":
        return engine.activation_bytes
    known = _by_blocks(engines, engine, "activation_bytes", engine.precision)
    if engine.all_blocks in known:
        return known[engine.all_blocks]
    rest, each = _line(engine, known)
    return round(rest + each * engine.all_blocks)


def _by_blocks(engines: Sequence[Engine], engine: Engine, name: str, precision: str) -> dict[int, int]:
    """A figure of the same network by how many of its blocks were compiled, of the engines most like this one."""
    model = {"model": engine.model} if engine.role != "text_encoder" else {}
    alike = matching(engines, role=engine.role, precision=precision, **model)
    alike.sort(key=lambda each: (each.parts == engine.parts, each.branches == engine.branches))
    return {each.blocks: getattr(each, name) for each in alike}


def _line(engine: Engine, known: dict[int, int]) -> tuple[float, float]:
    """What a figure is without blocks, and what each adds."""
    if len(known) < 2:
        raise ValueError(
            f"the {engine.role} in {base_precision(engine.precision)} was compiled with {list(known)} blocks alone"
        )
    few, more = min(known), max(known)
    each = (known[more] - known[few]) / (more - few)
    return known[few] - few * each, each


def _kept(precision: str, blocks: int) -> int:
    """How many blocks keep their precision at each end."""
    from mutoscope_export.families.wan.precision_policy import CALIBRATED

    return CALIBRATED[precision].kept(blocks)


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
    pictures = [best(of_vae, target, role=role, **vae) for role in MODELS[run["model"]].picture_roles]
    decoder = [best(of_vae, target, role=role, tiles=tiles if role in TILED else WHOLE, **vae) for role in DECODER]
    # In tiles the features come first, and then the tiles: what is open for the one is closed for the other.
    parts = [[each for each in decoder if (each.role in TILED) == tiled] for tiled in (False, True)]
    return {
        "text_encoder": [[encoder]],
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


def peaks(engines: Sequence[Engine]) -> Iterator[dict[str, Any]]:
    """A row for each target, denoiser, size and way of decoding of which there are engines."""
    runs = dict.fromkeys(tuple(getattr(each, name) for name in FACTS) for each in matching(engines, role="denoiser"))
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
    held = sum(weights_of_all_blocks(engines, each) + each.buffer_bytes for each in together)
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
