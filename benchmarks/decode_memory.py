"""Shows that memory does not grow with the number of frames: decodes short and long clips.

    python -m benchmarks.decode_memory [--output FILE.json]

Each clip is decoded in fresh processes of its own: with our chunks, dropped one by one; with our chunks, all kept,
which shows that this measurement can see growth; and with Diffusers, whole. The peak counts from after loading. Returns
1 when ours grows, from the shortest clip to the longest, by more than a tenth of the further frames' own bytes, or when
what is kept does not show. Where there is no built-in model, a small one with random weights stands in: memory does not
depend on values.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mutoscope_bench.cases import PROMPT
from mutoscope_bench.measuring import Answer, Run, measure_once, reset_peak_rss, serve

from .reporting import arguments, summary, write_result

FRAMES = (17, 81, 241)
OURS, KEPT, THEIRS = "mutoscope", "mutoscope, all frames kept", "diffusers"
LARGEST_SHARE = 0.1  # of the further frames' bytes, that ours may grow by


def load_ours(spec: dict[str, Any]) -> Run:
    """The stage of our pipeline, chunk by chunk, as they go into a file, or all kept."""
    from mutoscope.bundle.bundle import Bundle
    from mutoscope.planning.execution import Execution
    from mutoscope.request import RuntimeOptions
    from mutoscope.running.decode import decode
    from mutoscope.running.loaded import LoadedGraphs

    plan = _plan(spec)
    plan = replace(plan, memory=replace(plan.memory, keep_loaded=True))
    latents = _latents(plan)
    bundle = Bundle.open(spec["bundle"])
    execution = Execution.choose(RuntimeOptions(backend="onnxruntime", threads=spec["threads"]), bundle)
    graphs = LoadedGraphs(bundle, execution)
    for _ in decode(graphs, plan, latents[:, :2]):
        pass  # both graphs are open now, and what loading took is not counted

    def run() -> Answer:
        reset_peak_rss()
        kept = []
        for tensor in decode(graphs, plan, latents):
            frames = tensor.numpy()
            if spec["implementation"] == KEPT:
                kept.append(frames)
        return {}

    return run


def load_theirs(spec: dict[str, Any]) -> Run:
    """`AutoencoderKLWan.decode` of the whole clip."""
    import torch
    from diffusers import AutoencoderKLWan

    torch.set_num_threads(spec["threads"])
    vae = AutoencoderKLWan.from_pretrained(Path(spec["checkpoint"]) / "vae", torch_dtype=torch.float32).eval()
    latents = torch.from_numpy(_latents(_plan(spec)))[None]

    def run() -> Answer:
        reset_peak_rss()
        with torch.no_grad():
            vae.decode(latents, return_dict=False)
        return {}

    return run


def _plan(spec: dict[str, Any]) -> Any:
    import mutoscope

    with mutoscope.Pipeline.load(spec["bundle"], threads=spec["threads"]) as pipeline:
        return pipeline.plan(PROMPT, seed=0, num_frames=spec["num_frames"], height=spec["size"], width=spec["size"])


def _latents(plan: Any) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(plan.geometry.latents_shape, dtype=np.float32)


def make_model(folder: Path) -> None:
    """A checkpoint with random weights, and its bundle."""
    from mutoscope_export.export import export_checkpoint
    from mutoscope_export.families.wan.random_checkpoint import random_checkpoint

    random_checkpoint(folder / "checkpoint", latent_channels=16)
    export_checkpoint(folder / "checkpoint", folder / "bundle")


def measure(spec: dict[str, Any], processes: int) -> Answer:
    """The least of some fresh processes: what the system adds by chance is never negative."""
    answers = [measure_once(__spec__.name, spec)[0] for _ in range(processes)]
    least = min(answers, key=lambda answer: int(answer["peak_rss_bytes"]))
    row = {name: spec[name] for name in ("implementation", "num_frames", "size")}
    kept = ("load_s", "first_s", "peak_rss_bytes")
    return row | {name: value for name, value in summary(least, []).items() if name in kept}


def growth(rows: list[Answer]) -> dict[str, float]:
    """How much of the further frames' own bytes peak memory grew by, from the fewest frames to the most."""
    result = {}
    for implementation in (OURS, KEPT, THEIRS):
        first, *_, last = [row for row in rows if row["implementation"] == implementation]
        raw = (last["num_frames"] - first["num_frames"]) * 3 * last["size"] ** 2
        result[implementation] = round((last["peak_rss_bytes"] - first["peak_rss_bytes"]) / raw, 3)
    return result


def passes(share: dict[str, float]) -> bool:
    """Whether memory grows with the video as little as it may, and the measurement would have seen it."""
    return share[OURS] <= LARGEST_SHARE and share[KEPT] > 0.5


def main() -> int:
    """Measures, prints and writes; 1 where memory grows with the video."""
    parser = arguments(__doc__, default_rounds=2)
    parser.add_argument("--size", type=int, help="height and width in pixels; default: 128")
    given = parser.parse_args()
    if given.worker:
        serve(partial(load_theirs if given.worker["implementation"] == THEIRS else load_ours, given.worker))
        return 0
    frames = (5, 9) if given.quick else FRAMES
    size = given.size or (32 if given.quick else 128)
    with tempfile.TemporaryDirectory() as name:
        folder, checkpoint, bundle = Path(name), given.checkpoint, given.bundle
        note = None
        if not (checkpoint.is_dir() and bundle.is_dir()):
            note = "no built-in model here: a small one with random weights"
            make = "import sys, pathlib, benchmarks.decode_memory as m; m.make_model(pathlib.Path(sys.argv[1]))"
            subprocess.run([sys.executable, "-c", make, name], check=True)
            checkpoint, bundle = folder / "checkpoint", folder / "bundle"
        processes = {OURS: given.rounds, KEPT: given.rounds, THEIRS: 1}  # theirs is slow, and grows far beyond chance
        facts = {"size": size, "threads": given.threads, "bundle": str(bundle), "checkpoint": str(checkpoint)}
        rows = [
            measure(
                facts | {"implementation": implementation, "num_frames": num_frames},
                1 if given.quick else processes[implementation],
            )
            for num_frames in frames
            for implementation in (OURS, KEPT, THEIRS)
        ]
    share = growth(rows)
    print("growth of memory, in shares of the further frames' own bytes:", share)
    write_result(
        given.output, rows, threads=given.threads, quick=given.quick, note=note, processes=processes,
        growth_share=share, largest_share=LARGEST_SHARE, met=passes(share),
    )  # fmt: skip
    return 0 if given.quick or passes(share) else 1


if __name__ == "__main__":
    sys.exit(main())
