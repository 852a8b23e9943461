"""All that only a GPU can show, in one command: builds, generates, compares with the CPU, and times a step.

    python -m benchmarks.gpu_check [--bundle DIR] [--precision bf16] [--height H --width W --num-frames T] [--steps N]
                                   [--tile HxW] [--checkpoint DIR] [--output gpu_check.json]

Writes one JSON. What cannot run here is in it with the reason. Without an NVIDIA GPU it says so and exits with 4. With
--checkpoint, the same network in torch, eager and compiled, is timed beside ours. Steps are timed between two calls of
`on_step`, each of which has waited for the GPU; the first three, in which kernels are compiled and the graph is
captured, are left out of the median and told by themselves. With --tile, the GPU decodes in tiles and the CPU whole.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mutoscope import MutoscopeError, Pipeline, StepEvent
from mutoscope.bench.cases import PROMPT, SEED
from mutoscope.bench.machine import PACKAGES, describe
from mutoscope_engines.backends import load_backend
from mutoscope_engines.cuda_device import CudaDevice, compute_capability, cuda_unavailable_because
from mutoscope_engines.errors import BackendUnavailableError

WARM_UP_STEPS = 3
GPU_BACKENDS = ("tensorrt-rtx", "tensorrt", "onnxruntime-cuda")
GPU_PACKAGES = (*PACKAGES, "cuda-core", "cuda-bindings")


def main(argv: list[str] | None = None) -> int:
    arguments = _arguments(argv)
    if reason := cuda_unavailable_because():
        print(f"gpu_check: error: this check needs an NVIDIA GPU: {reason}", file=sys.stderr)
        return BackendUnavailableError.exit_code
    capability = compute_capability()
    report: dict[str, Any] = {
        "machine": describe(GPU_PACKAGES),
        "gpu": {"compute_capability": capability, "free_bytes": CudaDevice().free_bytes()},
        "request": {"prompt": PROMPT, "seed": SEED, **_size(arguments)},
        "build": _tried(lambda: _build(arguments, capability)),
    }
    reference = _generate(arguments, backend="onnxruntime", precision="fp32")
    frames = reference.pop("frames")
    report["cpu"] = reference
    for backend in GPU_BACKENDS:
        for graphs in ("on", "off"):
            name = f"{backend}, cuda_graphs {graphs}"
            report[name] = _tried(lambda b=backend, g=graphs: _compared(arguments, frames, b, g))
            print(f"{name}: {json.dumps(report[name])[:200]}", file=sys.stderr)
    if arguments.checkpoint:
        for compiled in (False, True):
            name = f"torch {'compiled' if compiled else 'eager'}"
            report[name] = _tried(lambda c=compiled: _torch_step(arguments, c))
    Path(arguments.output).write_text(json.dumps(report, indent=1) + "\n")
    print(f"gpu_check: wrote {arguments.output}", file=sys.stderr)
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="with graphs in the precision (default: the built-in one)")
    parser.add_argument("--checkpoint", type=Path, help="that the bundle was exported from, to time torch on")
    parser.add_argument("--precision", default="bf16", help="of the denoiser, on the GPU (default: bf16)")
    parser.add_argument("--steps", type=int, default=20, help=f"of denoising, more than {WARM_UP_STEPS} (default: 20)")
    parser.add_argument("--tile", metavar="HxW", help="decode in tiles of at most this many pixels on the GPU")
    for name in ("height", "width", "num-frames"):
        parser.add_argument(f"--{name}", type=int, help="of the video (default: the bundle's)")
    parser.add_argument("--output", default="gpu_check.json")
    arguments = parser.parse_args(argv)
    if arguments.steps <= WARM_UP_STEPS:
        parser.error(f"--steps must be more than {WARM_UP_STEPS}: the first are not timed; got {arguments.steps}")
    return arguments


def _size(arguments: argparse.Namespace) -> dict[str, int]:
    given = {name: getattr(arguments, name) for name in ("height", "width", "num_frames")}
    return {name: value for name, value in given.items() if value is not None}


def _tried(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it gives, or why it could not."""
    try:
        return work()
    except (MutoscopeError, ImportError, subprocess.CalledProcessError, RuntimeError, OSError) as error:
        return {"not_run": f"{type(error).__name__}: {getattr(error, 'stderr', None) or error}"}


def _build(arguments: argparse.Namespace, capability: int) -> dict[str, Any]:
    """`mutoscope build` for this GPU, at the size that will be made."""
    with Pipeline.load(arguments.bundle, backend="onnxruntime") as pipeline:
        plan = pipeline.plan(PROMPT, **_size(arguments))
    command = [sys.executable, "-m", "mutoscope", "build", "--json", "--target", f"sm{capability}"]
    command += ["--precision", arguments.precision, "--shapes", f"{plan.height}x{plan.width}x{plan.num_frames}"]
    command += ["--tile", arguments.tile] if arguments.tile else []
    command += [str(arguments.bundle)] if arguments.bundle else []
    started = time.perf_counter()
    built = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"seconds": round(time.perf_counter() - started, 1), **json.loads(built.stdout)}


def _generate(arguments: argparse.Namespace, **options: Any) -> dict[str, Any]:
    """Frames, stage times and step times of two videos with one pipeline: the first compiles, the second does not."""
    report: dict[str, Any] = {}
    with Pipeline.load(arguments.bundle, **options) as pipeline:
        for video in ("first", "second"):
            times = [time.perf_counter()]

            def note(event: StepEvent, times: list[float] = times) -> None:
                times.append(time.perf_counter())

            stream = pipeline.stream(
                PROMPT, seed=SEED, num_inference_steps=arguments.steps, on_step=note, **_size(arguments)
            )
            with stream:
                frames = np.concatenate(list(stream))
            steps = np.diff(times)
            report[video] = {
                "stages_s": {stage: round(seconds, 4) for stage, seconds in stream.times.seconds.items()},
                "first_steps_s": [round(float(seconds), 5) for seconds in steps[:WARM_UP_STEPS]],
                "step_median_s": round(float(np.median(steps[WARM_UP_STEPS:])), 6),
                "step_slowest_s": round(float(np.max(steps[WARM_UP_STEPS:])), 6),
            }
        plan = stream.plan.to_dict()
    keys = ("backend", "precision", "settings", "branches_per_call", "decoder_tiles", "memory_peak_bytes", "memory",
            "keep_loaded")  # fmt: skip
    return report | {"plan": {key: plan[key] for key in keys}, "frames": frames}


def _compared(arguments: argparse.Namespace, reference: Any, backend: str, graphs: str) -> dict[str, Any]:
    if reason := load_backend(backend).unavailable_because():
        raise BackendUnavailableError(reason)
    options = {"backend": backend, "precision": arguments.precision, "cuda_graphs": graphs, "tile": arguments.tile}
    report = _generate(arguments, **options)
    return report | {"against_cpu": differences(report.pop("frames"), reference)}


def differences(frames: Any, reference: Any) -> dict[str, float | None]:
    """Of two videos, uint8 `[T, H, W, 3]`: the largest and mean difference of a value, and the PSNR in decibels, `None`
    for equal ones: JSON has no infinity."""
    apart = frames.astype(np.float64) - reference
    mean_square = float(np.mean(apart**2))
    return {
        "largest": float(np.max(np.abs(apart))),
        "mean": round(float(np.mean(np.abs(apart))), 4),
        "psnr_db": round(10 * float(np.log10(255**2 / mean_square)), 2) if mean_square else None,
    }


def _torch_step(arguments: argparse.Namespace, compiled: bool) -> dict[str, Any]:
    """One forward of the checkpoint's network at the same sizes, both branches at once, in bfloat16."""
    import torch
    from diffusers import WanTransformer3DModel

    with Pipeline.load(arguments.bundle, backend="onnxruntime") as pipeline:
        plan = pipeline.plan(PROMPT, **_size(arguments))
        width = pipeline.bundle.manifest.text.width
    branches = len(plan.guidance_weights)
    model = WanTransformer3DModel.from_pretrained(arguments.checkpoint / "transformer", torch_dtype=torch.bfloat16)
    model = model.eval().to("cuda")
    if compiled:
        model.compile(mode="max-autotune-no-cudagraphs")
    like = {"device": "cuda", "dtype": torch.bfloat16}
    latents = torch.randn(branches, *plan.latents_shape, **like)
    embeds = torch.randn(branches, plan.max_sequence_length, width, **like)
    timestep = torch.full((branches,), 500.0, device="cuda")
    seconds = []
    with torch.no_grad():
        for _ in range(arguments.steps + WARM_UP_STEPS):
            torch.cuda.synchronize()
            started = time.perf_counter()
            model(latents, timestep, embeds, return_dict=False)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    return {
        "first_steps_s": [round(value, 4) for value in seconds[:WARM_UP_STEPS]],
        "step_median_s": round(float(np.median(seconds[WARM_UP_STEPS:])), 6),
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


if __name__ == "__main__":
    sys.exit(main())
