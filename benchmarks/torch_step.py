"""A step of the same network in torch on a GPU, eager and compiled, to lay beside those of `mutoscope gpu-check`.

    python -m benchmarks.torch_step --bundle wan-1.3b --checkpoint wan-checkpoint [--height H --width W --num-frames T]
                                    [--steps N]

One forward of the checkpoint's network at the bundle's sizes, all branches at once, in bfloat16. Prints one JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from mutoscope import Pipeline
from mutoscope_bench.cases import PROMPT
from mutoscope_bench.implementation import text_shapes
from mutoscope_bench.machine_facts import describe

WARM_UP_STEPS = 3


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torch_step", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="that says the sizes (default: the built-in one)")
    parser.add_argument("--checkpoint", type=Path, required=True, help="that the bundle was exported from")
    parser.add_argument("--steps", type=int, default=20, help="that are timed (default: 20)")
    for name in ("height", "width", "num-frames"):
        parser.add_argument(f"--{name}", type=int, help="of the video (default: the bundle's)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch_step: error: this torch finds no GPU", file=sys.stderr)
        return 4
    times = {name: _step(arguments, name == "compiled") for name in ("eager", "compiled")}
    print(json.dumps({"machine": describe()} | times, indent=1))
    return 0


def _step(arguments: argparse.Namespace, compiled: bool) -> dict[str, Any]:
    given = {name: getattr(arguments, name) for name in ("height", "width", "num_frames")}
    with Pipeline.load(arguments.bundle, backend="onnxruntime") as pipeline:
        plan = pipeline.plan(PROMPT, **{name: value for name, value in given.items() if value is not None})
        embeds_shape = text_shapes(pipeline.bundle, plan.conditions.lengths["L"])["prompt_embeds"]
    branches = len(plan.guidance.weights)
    model = WanTransformer3DModel.from_pretrained(arguments.checkpoint / "transformer", torch_dtype=torch.bfloat16)
    model = model.eval().to("cuda")
    if compiled:
        model.compile(mode="max-autotune-no-cudagraphs")
    like = {"device": "cuda", "dtype": torch.bfloat16}
    latents = torch.randn(branches, *plan.geometry.latents_shape, **like)
    embeds = torch.randn(branches, *embeds_shape, **like)
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
