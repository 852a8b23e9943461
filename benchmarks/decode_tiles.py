"""What decoding in tiles saves in memory on the CPU, and what it costs in time.

    python -m benchmarks.decode_tiles [--size 512] [--frames 9] [--tile 336x336 ...] [--output FILE.json]

Each way is measured in fresh processes of its own, with random latents; the peak counts from before anything of the
decoder is loaded, so that weights are in it, as are in tiles the features and the frames of the whole clip. The largest
difference between the frames of a way and those of the whole, in levels, is in the table too.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mutoscope_bench.cases import PROMPT
from mutoscope_bench.measuring import Answer, Run, measure_once, reset_peak_rss, serve

from .reporting import arguments, summary, write_result

WHOLE = "whole"


def load(spec: dict[str, Any]) -> Run:
    """Loads a bundle; its run decodes one video, whole or in tiles."""
    import mutoscope
    from mutoscope.bundle.bundle import Bundle
    from mutoscope.planning.execution import Execution
    from mutoscope.request import RuntimeOptions
    from mutoscope.running.decode import decode
    from mutoscope.running.loaded import LoadedGraphs
    from mutoscope.values.parameters import HEIGHT_WIDTH

    size, threads = spec["size"], spec["threads"]
    tile = None if spec["tile"] == WHOLE else HEIGHT_WIDTH.read(spec["tile"])
    with mutoscope.Pipeline.load(spec["bundle"], threads=threads, tile=tile) as pipeline:
        plan = pipeline.plan(PROMPT, seed=0, num_frames=spec["num_frames"], height=size, width=size)
    latents = np.random.default_rng(0).standard_normal(plan.geometry.latents_shape, dtype=np.float32)
    bundle = Bundle.open(spec["bundle"], verify=False)
    execution = Execution.choose(RuntimeOptions(backend="onnxruntime", threads=threads), bundle)

    def run() -> Answer:
        graphs = LoadedGraphs(bundle, execution)
        reset_peak_rss()
        with open(spec["frames"], "wb") as file:  # as into a video: nothing is kept
            for chunk in decode(graphs, plan, latents):
                chunk.numpy().tofile(file)
        graphs.close()
        return {
            "tiles": plan.decoder_tiles,
            "window": "x".join(str(side * size // plan.geometry.latents_shape[2]) for side in plan.decoder_window),
        }

    return run


def measure(spec: dict[str, Any], rounds: int) -> Answer:
    """A row of the table: one way to decode, in a process of its own for each round."""
    first, answers = measure_once(__spec__.name, spec, rounds)
    row = {"tile": spec["tile"], "tiles": first["tiles"], "window": first["window"]}
    found = summary(first, answers)
    return row | {name: found[name] for name in ("median_s", "min_s", "runs", "peak_rss_bytes")}


def main() -> int:
    """Runs what the command line asks for."""
    parser = arguments(__doc__, default_rounds=2)
    parser.add_argument("--size", type=int, help="height and width in pixels; default: 512")
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--tile", nargs="+", metavar="HxW", help="default: 336x336 and 288x288")
    given = parser.parse_args()
    if given.worker:
        serve(partial(load, given.worker))
        return 0
    size = given.size or (192 if given.quick else 512)
    tiles = given.tile or (["176x176"] if given.quick else ["336x336", "288x288"])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        facts = {"size": size, "num_frames": given.frames, "threads": given.threads, "bundle": str(given.bundle)}
        decoded = {}
        for tile in (WHOLE, *tiles):
            path = Path(folder) / f"{tile}.raw"
            row = measure(facts | {"tile": tile, "frames": str(path)}, 1 if given.quick else given.rounds)
            decoded[tile] = np.fromfile(path, np.uint8).astype(np.int16)
            apart = np.abs(decoded[tile] - decoded[WHOLE])
            rows.append(row | {"largest_difference": int(apart.max()), "share_different": float((apart > 0).mean())})
    write_result(given.output, rows, size=size, num_frames=given.frames, threads=given.threads, quick=given.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
