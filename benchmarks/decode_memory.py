"""Shows that memory does not grow with the number of frames: decodes short and long clips into MP4 files.

    python -m benchmarks.decode_memory [--output FILE.json]

Each clip is decoded in a fresh process, once with our chunks, streamed into the file, and once with Diffusers, whole.
The shortest does not fill the video encoder's window, so growth is counted from the second length to the last. Where
there is no built-in model, a small one with random weights stands in: memory does not depend on values.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .measuring import Answer, Run, arguments, measure_once, serve, summary, write_result

FRAMES = (17, 81, 241)
OURS, THEIRS = "mutoscope", "diffusers"
PROMPT = "a red circle moving right on a black background"


def load_ours(spec: dict[str, Any]) -> Run:
    """The stage of our pipeline, chunk by chunk into the file."""
    from mutoscope.bundle import Bundle
    from mutoscope.loaded import LoadedGraphs
    from mutoscope.pipeline import decode
    from mutoscope.video import write_video
    from mutoscope_engines.backends import load_backend
    from mutoscope_engines.session import SessionOptions

    plan = _plan(spec)
    latents = _latents(plan)
    backend = load_backend("onnxruntime")
    graphs = LoadedGraphs(Bundle.open(spec["bundle"]), backend, SessionOptions(threads=spec["threads"]))

    def run() -> Answer:
        write_video(spec["video"], decode(graphs, plan, latents), plan)
        return {}

    return run


def load_theirs(spec: dict[str, Any]) -> Run:
    """`AutoencoderKLWan.decode` of the whole clip, then the file."""
    import torch
    from diffusers import AutoencoderKLWan
    from diffusers.video_processor import VideoProcessor
    from mutoscope.video import write_video

    torch.set_num_threads(spec["threads"])
    plan = _plan(spec)
    vae = AutoencoderKLWan.from_pretrained(Path(spec["checkpoint"]) / "vae", torch_dtype=torch.float32).eval()
    statistics = (vae.config.latents_mean, vae.config.latents_std)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in statistics)
    latents = torch.from_numpy(_latents(plan))[None] * std + mean
    processor = VideoProcessor(vae_scale_factor=vae.config.scale_factor_spatial)

    def run() -> Answer:
        with torch.no_grad():
            video = vae.decode(latents, return_dict=False)[0]
        frames = processor.postprocess_video(video, output_type="np")[0]
        write_video(spec["video"], iter([np.rint(frames * 255).astype(np.uint8)]), plan)
        return {}

    return run


def _plan(spec: dict[str, Any]) -> Any:
    import mutoscope

    with mutoscope.Pipeline.load(spec["bundle"], threads=spec["threads"]) as pipeline:
        return pipeline.plan(PROMPT, seed=0, num_frames=spec["num_frames"], height=spec["size"], width=spec["size"])


def _latents(plan: Any) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(plan.latents_shape, dtype=np.float32)


def make_model(folder: Path) -> None:
    """A checkpoint with random weights, and its bundle."""
    from mutoscope_export.export import export_checkpoint
    from mutoscope_export.random_checkpoint import random_checkpoint

    random_checkpoint(folder / "checkpoint", latent_channels=16)
    export_checkpoint(folder / "checkpoint", folder / "bundle")


def measure(spec: dict[str, Any]) -> Answer:
    first, _ = measure_once(__spec__.name, spec)
    row = {name: spec[name] for name in ("implementation", "num_frames", "size")}
    kept = ("load_s", "first_s", "peak_rss_bytes")
    return row | {name: value for name, value in summary(first, []).items() if name in kept}


def growth(rows: list[Answer]) -> dict[str, int]:
    """Bytes of peak memory for each further frame, between the second number of frames and the last."""
    result = {}
    for implementation in (OURS, THEIRS):
        *_, before, last = [row for row in rows if row["implementation"] == implementation]
        more = last["num_frames"] - before["num_frames"]
        result[implementation] = round((last["peak_rss_bytes"] - before["peak_rss_bytes"]) / more)
    return result


def main() -> None:
    parser = arguments(__doc__, default_rounds=1)
    parser.add_argument("--size", type=int, help="height and width in pixels; default: 192")
    given = parser.parse_args()
    if given.worker:
        return serve(partial(load_ours if given.worker["implementation"] == OURS else load_theirs, given.worker))
    frames = (5, 9) if given.quick else FRAMES
    size = given.size or (32 if given.quick else 192)
    with tempfile.TemporaryDirectory() as name:
        folder, checkpoint, bundle = Path(name), given.checkpoint, given.bundle
        note = None
        if not (checkpoint.is_dir() and bundle.is_dir()):
            note = "no built-in model here: a small one with random weights"
            make = "import sys, pathlib, benchmarks.decode_memory as m; m.make_model(pathlib.Path(sys.argv[1]))"
            subprocess.run([sys.executable, "-c", make, name], check=True)
            checkpoint, bundle = folder / "checkpoint", folder / "bundle"
        rows = [
            measure({
                "implementation": implementation, "num_frames": num_frames, "size": size, "threads": given.threads,
                "bundle": str(bundle), "checkpoint": str(checkpoint), "video": str(folder / "video.mp4"),
            })
            for num_frames in frames
            for implementation in (OURS, THEIRS)
        ]  # fmt: skip
    per_frame = growth(rows)
    print("bytes of memory for each further frame:", per_frame)
    write_result(
        given.output, rows, threads=given.threads, quick=given.quick, note=note,
        growth_bytes_per_frame=per_frame, raw_bytes_per_frame=3 * size * size,
    )  # fmt: skip


if __name__ == "__main__":
    main()
