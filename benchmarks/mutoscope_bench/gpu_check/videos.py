"""The parts that make the bundle's video: engines, on the CPU, and with each backend of a GPU, compared."""

from __future__ import annotations

import json
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from mutoscope import Pipeline, RuntimeOptions, StepEvent, VideoRequest
from mutoscope.builtin import bundle_path
from mutoscope.bundle.bundle import Bundle
from mutoscope.commands.build import main as build_command
from mutoscope.values.parameters import HEIGHT_WIDTH
from mutoscope_engines.device.cuda import CudaDevice, compute_capability

from ..cases import PROMPT, SEED
from ..difference import difference
from .part import Facts
from .sessions import precisions_here, refuse_unavailable

WARM_UP_STEPS = 3  # in which kernels are compiled and the graph is captured; told by themselves
FRAMES = "frames.npy"  # of the CPU, in the folder that all parts share
PLAN = ("backend", "precision", "settings", "branches_per_call", "decoder_tiles", "memory_peak_bytes", "memory",
        "keep_loaded")  # fmt: skip


def build(spec: dict[str, Any]) -> Facts:
    """`mutoscope build` for this GPU, at the size that will be made."""
    refuse_unavailable(spec["backend"])
    with Pipeline.load(spec["bundle"], backend="onnxruntime") as pipeline:
        frames, height, width, _ = pipeline.plan(VideoRequest(prompt=PROMPT, **spec["request"])).header.shape
    command = ["--json", "--backend", spec["backend"], "--target", f"sm{compute_capability()}"]
    command += [
        "--precision",
        _precision(spec),
        "--shapes",
        f"{height}x{width}x{frames}",
    ]
    command += ["--tile", HEIGHT_WIDTH.write(spec["tile"])] if spec["tile"] else []
    command += [spec["bundle"]] if spec["bundle"] else []
    with redirect_stdout(StringIO()) as built:
        build_command(command)
    return dict(json.loads(built.getvalue()))


def on_cpu(spec: dict[str, Any]) -> Facts:
    """A video by ONNX Runtime in float32, whose frames `on_gpu` is compared with."""
    facts, frames = _generate(spec, None, backend="onnxruntime", precision="fp32")
    np.save(Path(spec["folder"]) / FRAMES, frames)
    return facts


def on_gpu(spec: dict[str, Any]) -> Facts:
    """The same video on the GPU: its times, its memory, and how far its frames are from those of the CPU."""
    refuse_unavailable(spec["backend"])
    probe = CudaDevice()
    facts, frames = _generate(
        spec, probe, backend=spec["backend"], precision=_precision(spec), cuda_graphs=spec["cuda_graphs"],
        tile=spec["tile"],
    )  # fmt: skip
    reference = Path(spec["folder"]) / FRAMES
    if reference.exists():
        facts["against_cpu"] = differences(frames, np.load(reference))
    return facts


def _precision(spec: dict[str, Any]) -> str:
    return str(spec["precision"] or precisions_here()[0])


def _generate(spec: dict[str, Any], probe: CudaDevice | None, **options: Any) -> tuple[Facts, Any]:
    """Stage times, step times and free memory of two videos with one pipeline: the first compiles, the second not.

    Steps are timed between two calls of `on_step`, each of which has waited for the GPU.
    """
    facts: Facts = {}
    frames: Any = None
    free: dict[str, int] = {}

    def look(when: str) -> None:
        if probe is not None:
            free[when] = probe.free_bytes()

    look("before")
    chosen = RuntimeOptions.from_dict(options)
    request = VideoRequest(prompt=PROMPT, seed=SEED, num_inference_steps=spec["steps"], **spec["request"])
    with Pipeline(Bundle.open(spec["bundle"] or bundle_path()), chosen) as pipeline:
        for video in ("first", "second"):
            times = [time.perf_counter()]

            def note(event: StepEvent, times: list[float] = times) -> None:
                times.append(time.perf_counter())

            def begin(stage: str, video: str = video) -> None:
                look(f"{video}, before {stage}")

            stream = pipeline.stream(request, on_step=note, on_stage=begin)
            with stream:
                frames = np.concatenate(list(stream))
            look(f"after the {video}")
            facts[video] = {
                "stages_s": {stage: round(seconds, 4) for stage, seconds in stream.times.seconds.items()},
                **_step_times(np.diff(times)),
            }
        plan = stream.plan.to_dict()
    look("closed")
    return facts | {"free_bytes": free, "plan": {key: plan[key] for key in PLAN}}, frames


def _step_times(seconds: Any) -> Facts:
    return {
        "first_steps_s": [round(float(value), 5) for value in seconds[:WARM_UP_STEPS]],
        "step_median_s": round(float(np.median(seconds[WARM_UP_STEPS:])), 6),
        "step_slowest_s": round(float(np.max(seconds[WARM_UP_STEPS:])), 6),
    }


def differences(frames: Any, reference: Any) -> Facts:
    """Of two videos, uint8 `[T, H, W, 3]`: the largest and mean difference of a value, the relative error, and the PSNR
    in decibels, `None` for equal ones: JSON has no infinity."""
    found = difference(frames, reference)
    if found.relative_error is None:
        raise ValueError(f"the video is {frames.shape}, that of the CPU {reference.shape}")
    apart = np.abs(frames.astype(np.int16) - reference)
    return {
        "largest": int(np.max(apart)),
        "mean": round(float(np.mean(apart)), 4),
        "relative_error": found.relative_error,
        "psnr_db": found.psnr_db,
    }
