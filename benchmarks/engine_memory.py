"""Compiles networks of real size for a GPU, on a machine without one, and records what their engines need.

Knows which sizes to build for. Knows nothing of how an engine is compiled. Activation memory hardly depends on the
number of blocks, so two show what a change of the graph does.

    python -m benchmarks.engine_memory [--role denoiser vae_decoder_next] [--model 1.3B] [--blocks 2]
        [--part-size 2GB] [--shapes 480x832x81] [--tile whole 416x408] [--branches 1] [--precision bf16]
        [--target rtx40 rtx50 rtx40,rtx50] [--lora-inputs] [--output FILE]

A tile is the largest window of the VAE's decoder, its halo included; `buffer_bytes` are inputs and outputs, which come
on top of an engine's own memory, of all parts together where there are several. `graph_bytes` is the graph on disk with
its weights. Targets with commas between them share an engine. Results of before rows had a target have one for all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
from mutoscope.building.engine_budget import budget_bytes
from mutoscope.building.engine_shapes import smallest_in_fp8
from mutoscope.bundle.contract import ROLES, TILED
from mutoscope.bundle.manifest import Graph
from mutoscope.commands.arguments import as_type, one_of
from mutoscope.planning.footprints import buffer_bytes
from mutoscope.planning.tiles import num_tiles, window_within
from mutoscope.values.parameters import BYTES
from mutoscope_bench.machine_facts import describe
from mutoscope_engines.precisions import ON_GPU, PRECISIONS
from mutoscope_engines.symbols import sized
from mutoscope_peers.random_models import write_graphs

from .real_sizes import MAX_SEQUENCE_LENGTH, MODELS, PATCH, Model, configuration, cut_to, with_random_weights

SMALLEST = {"B": 1, "L": 1, "F": 1, "h": 2, "w": 2, "K": 1, "R": 1}
STATE_ROWS = 4
LORA_RANK = 64
WHOLE = "whole"


def write(
    role: str, model: str, blocks: int | None, precision: str, part_bytes: int | None, lora_inputs: bool, folder: Path
) -> dict[str, Any]:
    """Writes the graph of a network with random bfloat16 weights, in parts of at most `part_bytes`.

    Returns: what export took, what a bundle would say of the graph, and the halo of the VAE's decoder.
    """
    from mutoscope_export.families.wan import sources, vae
    from mutoscope_export.families.wan.graph_sources import BLOCKS
    from mutoscope_export.graphs.parts import Blocks

    cut = Blocks(BLOCKS[role], part_bytes) if part_bytes and role in BLOCKS else None
    checkpoint = configuration(cut_to(MODELS[model], blocks), folder.with_name(f"{role}.configuration"))
    (source,) = (source for source in sources(checkpoint, [precision]) if source.role == role)
    started = time.perf_counter()
    network = with_random_weights(checkpoint.without_weights(source.component))
    around = _calibrated_passes(network, precision)
    (parts,) = write_graphs(source, network, {precision: folder}, around, cut, lora_inputs=lora_inputs).values()
    export_s = round(time.perf_counter() - started, 1)
    halo = vae.DecoderChunk(network, first=True).halo() if role in TILED else 0
    return {"parts": msgspec.to_builtins(parts), "halo": halo, "export_s": export_s}


def _calibrated_passes(network: Any, precision: str) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Puts those of the family's default policy for a precision that it calibrates around others, with made-up ranges.

    Every layer that may be in four bits is.
    """
    from mutoscope_export.families.wan.precision_policy import CALIBRATED
    from mutoscope_export.quantization.calibration import ActivationRange, Ranges
    from mutoscope_export.quantization.quantize import passes_of

    if precision not in CALIBRATED:
        return tuple
    policy, spread = CALIBRATED[precision], ActivationRange(largest=4.0)
    layers = policy.layers([name for name, _ in network.named_modules()], policy.default)
    if policy.four_bits_error is not None:
        layers = replace(layers, four_bits=layers.linears)
    ranges = Ranges(dict.fromkeys(layers.linears, spread), dict.fromkeys(layers.attentions, 3 * (spread,)), [])
    return passes_of(policy, layers, ranges).around


def largest(model: Model, shapes: str, branches: int) -> dict[str, int]:
    """The symbols of the graphs' shapes at "HxWxT".

    Raises:
        ValueError: the model makes no video of this size.
    """
    height, width, frames = map(int, shapes.split("x"))
    sides = [model.spatial * patch for patch in PATCH[1:]]
    if height % sides[0] or width % sides[1] or (frames - 1) % model.temporal:
        raise ValueError(
            f"{shapes} is no size of this model: height and width must be multiples of {sides[0]} and {sides[1]}, and "
            f"the number of frames a multiple of {model.temporal} plus one"
        )
    return {
        "B": branches, "L": MAX_SEQUENCE_LENGTH, "F": (frames - 1) // model.temporal + 1,
        "h": height // model.spatial, "w": width // model.spatial, "K": STATE_ROWS, "R": LORA_RANK,
    }  # fmt: skip


def windows(sizes: Mapping[str, int], tiles: Sequence[str], halo: int, spatial: int) -> dict[str, dict[str, int]]:
    """What each of `tiles` makes of the sizes of a picture, by its name: the window, and how many there are."""
    picture = sizes["h"], sizes["w"]
    found = {}
    for tile in tiles:
        window = picture
        if tile != WHOLE:
            rows, columns = map(int, tile.split("x"))
            window = window_within(picture, (rows // spatial, columns // spatial), halo)
        rows, columns = window
        count = num_tiles(picture, window, halo)
        name = WHOLE if count == 1 else f"{count} of {rows * spatial}x{columns * spatial}"
        found[name] = {**sizes, "h": rows, "w": columns}
    return found


def build(folder: Path, graph: Graph, sizes: Mapping[str, int], target: str, model: Model) -> dict[str, Any]:
    """Compiles a graph, for shapes up to `sizes`, in a process of its own; the engine itself is thrown away.

    Returns: what it needs, and what the gate of `mutoscope build` allows for its activations.
    """
    from mutoscope_engines.cache.identity import ShapeRange, content_of
    from mutoscope_engines.targets import find_target
    from mutoscope_engines.tensorrt.library import LIBRARIES
    from mutoscope_engines.tensorrt.process import compile_in_process

    library = LIBRARIES["tensorrt-rtx"]
    smallest = SMALLEST | (smallest_in_fp8(sizes, PATCH) if PRECISIONS[graph.precision].fp8_attention else {})
    profile = {
        tensor.name: ShapeRange(
            min=sized(tensor.shape, smallest), opt=sized(tensor.shape, sizes), max=sized(tensor.shape, sizes)
        )
        for tensor in graph.inputs
    }
    file, *weights = (folder / Path(name).name for name in (graph.file, *graph.weights))
    targets = [find_target(name) for name in target.split(",")]
    identity = library.identity(content_of(file, *weights), graph.precision, targets, profile)
    with tempfile.TemporaryDirectory(dir=folder.parent) as engines:
        compiled = compile_in_process(file, Path(engines) / "engine", library.name, identity)
    allowed = budget_bytes(graph, sizes, model.geometry(halo=0), compiled)
    stored = sum(path.stat().st_size for path in (file, *weights))
    return asdict(compiled) | {"budget_bytes": allowed, "graph_bytes": stored}


def main() -> int:
    """Runs what the command line asks for."""
    arguments = _parser().parse_args()
    if arguments.write:
        *given, folder = json.loads(arguments.write)
        print(json.dumps(write(*given, Path(folder))))
        return 0
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.workspace) as workspace:
        for role in arguments.role:
            folder = Path(workspace) / role
            given = [getattr(arguments, name) for name in ("model", "blocks", "precision", "part_size", "lora_inputs")]
            written = _write_in_process(role, *given, str(folder))
            parts = [msgspec.convert(part, Graph) for part in written["parts"]]
            for target, shapes in product(arguments.target, arguments.shapes):
                for branches in arguments.branches if role in ("denoiser", "text_encoder") else [1]:
                    row = {"role": role, "target": target, "shapes": shapes, "branches": branches}
                    row["export_s"] = written["export_s"]
                    for compiled in _compiled(row, folder, parts, written["halo"], arguments):
                        rows.append(compiled)
                        _save(rows, arguments)
            shutil.rmtree(folder)
    if not arguments.output:
        print(_as_result(rows, arguments), end="")
    return 0


def _save(rows: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """After each engine, so that whoever stops a run keeps what was compiled."""
    if arguments.output:
        arguments.output.write_text(_as_result(rows, arguments))


def _as_result(rows: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> str:
    asked = {name: getattr(arguments, name) for name in ("model", "blocks", "precision")}
    asked |= {"part_bytes": arguments.part_size} if arguments.part_size else {}
    asked |= {"lora_rank": LORA_RANK} if arguments.lora_inputs else {}
    return json.dumps(asked | {"machine": describe(), "engines": rows}, indent=2) + "\n"


def _compiled(
    row: Mapping[str, Any], folder: Path, parts: Sequence[Graph], halo: int, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A row for each part in each way of decoding, of engines for the role, target, size and branches of `row`."""
    model = MODELS[arguments.model]
    tiles = arguments.tile if row["role"] in TILED else [WHOLE]
    for name, sizes in windows(largest(model, row["shapes"], row["branches"]), tiles, halo, model.spatial).items():
        buffers = {"buffer_bytes": buffer_bytes(parts, sizes)}
        for part in parts:
            compiled = build(folder, part, sizes, row["target"], model)
            found = {name: value for name, value in compiled.items() if name != "sha256"}
            numbered = {"part": f"{part.part} of {len(parts)}"} if part.part else {}
            made = {**row, **numbered, "tiles": name} | buffers | found
            print(json.dumps(made), file=sys.stderr)
            yield made


def _write_in_process(*arguments: Any) -> dict[str, Any]:
    """So that what the exporter leaves in memory is not there while an engine is compiled."""
    command = [sys.executable, "-m", __spec__.name, "--write", json.dumps(arguments)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(said.splitlines()[-1]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--role", nargs="+", metavar="ROLE", type=one_of("role", list(ROLES)), default=["denoiser"],
        help=f"{', '.join(ROLES)} (default: denoiser)",
    )  # fmt: skip
    parser.add_argument(
        "--model",
        type=one_of("model", list(MODELS)),
        default="1.3B",
        help=f"{', '.join(MODELS)} (default: 1.3B); A14B and I2V-A14B have two denoisers of one size",
    )
    parser.add_argument("--blocks", type=int, help="of the denoiser and the text encoder; all when not given")
    parser.add_argument("--part-size", type=as_type(BYTES), help="in parts of at most so much")
    parser.add_argument("--shapes", nargs="+", default=["480x832x81"], metavar="HxWxT")
    parser.add_argument("--tile", nargs="+", default=[WHOLE], metavar="HxW", help=f"of the VAE's decoder; or {WHOLE}")
    parser.add_argument("--branches", nargs="+", type=int, choices=(1, 2), default=[1])
    parser.add_argument("--precision", type=one_of("precision", ON_GPU), default="bf16", help=", ".join(ON_GPU))
    parser.add_argument("--target", nargs="+", default=["rtx40"], help="several with commas: one engine for them all")
    parser.add_argument("--lora-inputs", action="store_true", help="of the denoiser, the form that LoRAs change")
    parser.add_argument("--workspace", type=Path, help="folder for the graphs and engines; default: a temporary one")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
