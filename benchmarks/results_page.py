"""Writes the page of all measured figures from the committed results, so that no figure on it is typed.

    python -m benchmarks.results_page        # writes docs/results.md

Knows which figure is read from which file. Measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from .results_engines import SECTIONS as ENGINE_SECTIONS
from .results_figures import (
    Result,
    bulk_per_hour,
    followed,
    killed_batches,
    killed_servers,
    loaded_server,
    lost_and_gained,
    peaks_by_length,
    peaks_by_tiles,
    quieter_forward,
    server_adds,
    stages_of_export,
    times,
    turns,
    videos_per_hour,
    within_limit,
    wrong_shapes,
)
from .results_rows import Row, Section

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks/results"
PAGE = REPOSITORY / "docs/results.md"

CPU = ("onnxruntime", "openvino", "diffusers")
ORT = ("onnxruntime",)
EXPORT = ("torch", "onnx", "onnxruntime")


ONNX, OPENVINO, BOTH = "mutoscope onnxruntime", "mutoscope openvino", "mutoscope onnxruntime+openvino"
EAGER, COMPILED, BF16_HINT = "diffusers, fp32", "diffusers-compiled, fp32", "openvino, bf16 hint"
CLIP = ("default-clip", "whole_run")
PICTURED = ("picture-clip", "whole_run")
FORWARD = ("wan-1.3b-width", "forward")
VAE = ("wan-vae", "decode")

SECTIONS = (
    Section(
        "Quality of the built-in model",
        "Each prompt gets a seed that training never drew. A judge that sees only the frames decides what they show: "
        "[the built-in model](built-in-model.md#the-judge).",
        (
            Row("aspects of the prompt shown, fp32", ("prompt_following.json",), followed, ORT),
            Row("wrong shapes, fp32", ("prompt_following.json",), wrong_shapes, ORT),
            Row("aspects of the prompt shown, int8", ("prompt_following_int8.json",), followed, ORT),
            Row(
                "prompts of 96 lost and gained against fp32",
                ("quantisation_quality.json",),
                lost_and_gained(
                    **{
                        "bf16": "bf16",
                        "fp8": "fp8: and self-attention products",
                        "int8-static": "int8-static: and self-attention projections",
                    }
                ),
                ORT,
            ),
            Row(
                "reconstruction of 64 unseen clips by its VAE, PSNR",
                ("builtin_training.json",),
                lambda result: f"{result['vae_reconstruction_psnr_db']:.1f} dB",
                (),
            ),
        ),
    ),
    Section(
        "Speed on a CPU",
        "A CPU [restricted to AVX2](decisions/0021-int8-on-every-cpu.md#how-a-cpu-passes-for-an-older-one). Times are "
        "medians. Ours and a peer take turns; a ratio above 1 means that ours is faster, and the range in brackets is "
        "that of the rounds.",
        (
            Row(
                "built-in clip (96x96, 17 frames, 20 steps), prompt to MP4",
                ("bench_builtin.json",),
                times(*CLIP, f"{OPENVINO}, fp32", "openvino, fp32", EAGER),
                CPU,
            ),
            Row(
                "built-in clip, prompt to MP4, other settings of ours",
                ("bench_builtin.json",),
                times(*CLIP, f"{ONNX}, fp32", f"{ONNX}, int8", f"{BOTH}, int8"),
                (*ORT, "openvino"),
            ),
            Row(
                "built-in clip from a picture",
                ("bench_builtin.json",),
                times(*PICTURED, f"{OPENVINO}, fp32", "openvino, fp32", EAGER),
                CPU,
            ),
            Row(
                "the same, in turns",
                ("bench_builtin.json",),
                turns(*PICTURED, f"{OPENVINO}, fp32", "openvino, fp32", EAGER),
                CPU,
            ),
            Row(
                "one forward at the width of Wan 2.1 1.3B (2 blocks, 1280 tokens, 2 branches)",
                ("bench_avx2.json",),
                times(*FORWARD, f"{ONNX}, int8", "openvino, fp32", EAGER),
                CPU,
            ),
            Row(
                "the same, in turns",
                ("bench_avx2.json",),
                turns(*FORWARD, f"{ONNX}, int8", "openvino, fp32", EAGER),
                CPU,
            ),
            Row(
                "decoding 5 frames of 256x256 with the VAE of Wan 2.1",
                ("bench_avx2.json",),
                times(*VAE, f"{ONNX}, fp32", f"{OPENVINO}, fp32", BF16_HINT, EAGER),
                CPU,
            ),
            Row("the same, in turns", ("bench_avx2.json",), turns(*VAE, f"{ONNX}, fp32", BF16_HINT, EAGER), CPU),
        ),
    ),
    Section(
        "Memory on a CPU",
        "",
        (
            Row(
                "peak memory of decoding at 128x128",
                ("decode_memory.json",),
                peaks_by_length,
                ("onnxruntime", "diffusers"),
            ),
            Row("peak memory of decoding 9 frames of 512x512", ("decode_tiles.json",), peaks_by_tiles, ORT),
            Row(
                "`mutoscope generate` with Wan 2.1 1.3B and UMT5-XXL in int8 (random weights), 256x256, 17 frames, "
                "under a limit that the kernel enforces",
                ("small_memory_run.json",),
                within_limit,
                ORT,
            ),
        ),
    ),
    *ENGINE_SECTIONS,
    Section(
        "Memory of an export",
        "The denoiser alone, with random weights in a bfloat16 checkpoint. Memory that the system cannot reclaim, at "
        "its peak while the graph is written and while it is compared with its PyTorch module.",
        (
            Row("Wan 2.1 1.3B to fp32", ("export_memory_wan13b.json",), stages_of_export, EXPORT),
            Row("Wan 2.1 14B to bf16, in parts", ("export_memory_wan14b.json",), stages_of_export, EXPORT),
        ),
    ),
    Section(
        "Batches, the server and the watermark",
        "",
        (
            Row(
                "workers of [a batch](bulk.md) killed at random, on two sides whose clocks differ by an hour",
                ("batch_kills.json",),
                killed_batches,
                ORT,
            ),
            Row(
                "`mutoscope batch` beside a loop of `mutoscope generate`, built-in clips",
                ("batch_loop.json",),
                videos_per_hour,
                ORT,
            ),
            Row(
                "the same within one process, 64x64, 9 frames",
                ("bench_builtin.json",),
                bulk_per_hour(ONNX, "fp32"),
                ORT,
            ),
            Row(
                "built-in clip through the server and without it",
                ("bench_builtin.json",),
                server_adds(ONNX, "fp32"),
                ORT,
            ),
            Row("[`mutoscope serve`](server.md) killed at random", ("server_kills.json",), killed_servers, ORT),
            Row("`mutoscope serve` under load", ("server_load.json",), loaded_server, ORT),
            Row(
                "bits of the [watermark](provenance.md) read after x264, AV1, scaling and cutting, PSNR, false alarms, "
                "time a frame",
                ("watermark_robustness.json",),
                lambda result: f"{len(result['summary'])} combinations of size, clips and attack, in the file",
                ("av", "numpy"),
            ),
        ),
    ),
    Section(
        "Measured with an older version",
        "These figures are of code that has changed since. The decoder then ran on all frames of a chunk at once (now "
        "two at a time), int8 weights had [other scales](decisions/0021-int8-on-every-cpu.md), and waiting threads "
        "spun. `bf16-cpu` needs an export, because the built-in bundle does not hold it.",
        (
            Row(
                "built-in clip, prompt to MP4, on a CPU with AVX512-BF16",
                ("bench.json",),
                times(*CLIP, f"{OPENVINO}, bf16-cpu", f"{BOTH}, int8", f"{ONNX}, fp32", BF16_HINT, EAGER, COMPILED),
                CPU,
            ),
            Row(
                "the same, in turns",
                ("bench.json",),
                turns(*CLIP, f"{OPENVINO}, bf16-cpu", BF16_HINT, EAGER, COMPILED),
                CPU,
            ),
            Row(
                "one forward at the width of Wan 2.1 1.3B there",
                ("bench_width.json",),
                times(*FORWARD, f"{ONNX}, int8", BF16_HINT),
                (*ORT, "openvino"),
            ),
            Row(
                "the same, in a noisy hour",
                ("bench_parts.json",),
                times(*FORWARD, f"{ONNX}, int8", BF16_HINT, "diffusers-compiled, bf16"),
                CPU,
            ),
            Row(
                "one forward of all 30 blocks, 192 tokens, in a noisy hour",
                ("bench_parts.json",),
                times("wan-1.3b", "forward", f"{ONNX}, int8", EAGER, "diffusers, bf16", "stable-diffusion.cpp, q8_0"),
                ("onnxruntime", "diffusers", "stable-diffusion-cpp-python"),
            ),
            Row(
                "decoding 5 frames of 256x256 with the VAE of Wan 2.1",
                ("bench.json",),
                times(*VAE, f"{OPENVINO}, bf16-cpu", f"{ONNX}, fp32", BF16_HINT, EAGER),
                CPU,
            ),
            Row(
                "one forward at the width of Wan 2.1 1.3B on a CPU with AMX",
                ("cpu_profile.json",),
                quieter_forward,
                (*ORT, "openvino"),
            ),
            Row(
                "prompts of 96 lost and gained against fp32, int8",
                ("quantisation_quality.json",),
                lost_and_gained(int8="int8"),
                ORT,
            ),
        ),
    ),
)

HEAD = """\
# Results

`python -m benchmarks.results_page` reads every figure here from the named file in `benchmarks/results/`, and a test
compares this page with those files. The model is the built-in one, or Wan 2.1 at its real size with random weights.
[Benchmarking](benchmarking.md) describes how `mutoscope bench` measures, and [benchmarks](../benchmarks/README.md) what
the other scripts measure.
"""


def load(name: str) -> Result:
    result: Result = json.loads((RESULTS / name).read_text("utf-8"))
    return result


def machine(result: Result) -> str:
    """The CPU, its cores, the instructions it was restricted to and whether it was quiet, as far as the result says."""
    known = result.get("machine")
    if known is None:
        return "not recorded"
    told = [known["cpu"], f"{known['cores']} cores"]
    if known.get("cpu_class"):
        told.append(known["cpu_class"])
    if not result.get("noise", {"quiet": True})["quiet"]:
        told.append("not quiet")
    return ", ".join(told)


def versions(result: Result, packages: Iterable[str]) -> str:
    return ", ".join(f"{name} {result['machine']['packages'][name]}" for name in packages) or "not recorded"


def line(row: Row) -> str:
    results = [load(name) for name in row.files]
    names = ", ".join(f"`{name}`" for name in row.files)
    cells = (row.what, row.read(*results), names, machine(results[0]), versions(results[0], row.packages))
    return f"| {' | '.join(cells)} |"


def page() -> str:
    told = [HEAD]
    for section in SECTIONS:
        told += [f"## {section.title}\n", *([f"{section.text}\n"] if section.text else [])]
        told += ["| what | result | file | machine | measured with |", "|---|---|---|---|---|"]
        told += [*map(line, section.rows), ""]
    return "\n".join(told)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
