"""The page of results is what its script makes, and the README's figures are those of the committed results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results_page
from benchmarks.results_figures import span, wrong_shapes

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks/results" / name).read_text("utf-8"))


def cells(first: str) -> list[str]:
    """Of the README's one row that begins with these words, without the first cell."""
    (line,) = (line for line in README.splitlines() if line.startswith(f"| {first}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def median(case: str, stage: str, implementation: str, precision: str) -> float:
    (row,) = [
        row
        for row in result("bench_builtin.json" if case == "default-clip" else "bench_avx2.json")["rows"]
        if [row["case"], row["stage"], row["implementation"], row["precision"]]
        == [case, stage, implementation, precision]
    ]  # fmt: skip
    return row["median_s"]


def peak(implementation: str, num_frames: int) -> int:
    (row,) = [
        row
        for row in result("decode_memory.json")["rows"]
        if (row["implementation"], row["num_frames"]) == (implementation, num_frames)
    ]
    return row["peak_rss_bytes"]


def predicted(model: str, precision: str, branches: int) -> Any:
    """The prediction for a denoiser in the parts that were compiled, with the decoder in the smallest tiles."""
    parts = {("1.3B", "bf16"): 1, ("1.3B", "fp8"): 1, ("14B", "fp8"): 14}[model, precision]
    (row,) = [
        row
        for row in result("predicted_peaks.json")["rows"]
        if (row["model"], row["target"], row["precision"], row["shapes"], row["branches"], row["parts"], row["decoder"])
        == (model, "rtx40", precision, "480x832x81", branches, parts, "6 of 296x352")
        and row["lora_rank"] == 0
    ]
    return row


def weights(*names: str) -> int:
    """Of engines for 480x832x81 with one branch, whole frames, all parts together."""
    engines = [engine for name in names for engine in result(f"engine_memory/{name}.json")["engines"]]
    return sum(
        engine["weight_bytes"]
        for engine in engines
        if (engine["shapes"], engine["branches"], engine["tiles"]) == ("480x832x81", 1, "whole")
    )


def test_the_committed_page_is_what_the_script_makes() -> None:
    assert results_page.PAGE.read_text("utf-8") == results_page.page()


def test_every_row_names_a_committed_result() -> None:
    files = {name for section in results_page.SECTIONS for row in section.rows for name in row.files}
    assert all((ROOT / "benchmarks/results" / name).exists() for name in files)


@pytest.mark.parametrize(
    ("row", "places"),
    [
        ("built-in clip", [("default-clip", "whole_run", "mutoscope openvino", "fp32"),
                           ("default-clip", "whole_run", "openvino", "fp32"),
                           ("default-clip", "whole_run", "diffusers", "fp32")]),
        ("one network call", [("wan-1.3b-width", "forward", "mutoscope onnxruntime", "int8"),
                              ("wan-1.3b-width", "forward", "openvino", "fp32"),
                              ("wan-1.3b-width", "forward", "diffusers", "fp32")]),
        ("decoding 5 frames", [("wan-vae", "decode", "mutoscope onnxruntime", "fp32"),
                               ("wan-vae", "decode", "openvino", "bf16 hint"),
                               ("wan-vae", "decode", "diffusers", "fp32")]),
    ],
)  # fmt: skip
def test_the_times_of_the_readme_are_those_measured(row: str, places: list[tuple[str, str, str, str]]) -> None:
    told = [re.match(r"([\d.]+) s", cell) for cell in cells(row)]
    assert all(told)
    for found, place in zip(told, places, strict=True):
        digits = len(found[1].partition(".")[2])
        assert float(found[1]) == round(median(*place), digits)


def test_the_bf16_hint_is_the_faster_openvino_for_the_vae() -> None:
    assert median("wan-vae", "decode", "openvino", "bf16 hint") < median("wan-vae", "decode", "openvino", "fp32")


def test_the_other_figures_of_the_readme_beside_its_times_are_those_measured() -> None:
    clip = median("default-clip", "whole_run", "mutoscope onnxruntime", "fp32")
    assert f"({clip:.2f} s without it)" in README
    vae = median("wan-vae", "decode", "mutoscope openvino", "fp32")
    assert f"(the VAE takes {vae:.1f} s with the extra)" in README
    (forward,) = [
        row["relative_error"]
        for row in result("bench_avx2.json")["rows"]
        if row["stage"] == "forward" and (row["implementation"], row["precision"]) == ("mutoscope onnxruntime", "int8")
    ]
    assert f"(int8, {100 * forward:.1f} % error)" in README
    right = result("prompt_following.json")["right"]["all"]
    assert (
        f"{100 * right['shape']:.0f} % of {right['n']} test prompts, the right colour in {100 * right['colour']:.0f} %"
        in README
    )


def test_the_memory_of_decoding_in_the_readme_is_that_measured() -> None:
    ours, _, theirs = cells("peak memory of decoding 17 and 241 frames")
    assert ours == f"{peak('mutoscope', 17) / 1e6:.0f} and {peak('mutoscope', 241) / 1e6:.0f} MB"
    assert theirs == f"{peak('diffusers', 17) / 1e6:.0f} and {peak('diffusers', 241) / 1e6:.0f} MB"


@pytest.mark.parametrize(
    ("row", "model", "precision", "branches", "names"),
    [
        ("Wan 2.1 1.3B, 480x832, 81 frames | bf16", "1.3B", "bf16", 2, "1.3b_bf16_rtx40"),
        ("Wan 2.1 1.3B, 480x832, 81 frames | FP8", "1.3B", "fp8", 2, "1.3b_fp8_rtx40"),
        ("Wan 2.1 14B, 480x832, 81 frames | FP8", "14B", "fp8", 1, "14b_parts_fp8_rtx40"),
    ],
)
def test_what_a_gpu_needs_is_what_was_predicted(
    row: str, model: str, precision: str, branches: int, names: str
) -> None:
    *_, memory, disk = cells(row)
    assert memory == f"{predicted(model, precision, branches)['in_turns_bytes'] / 1e9:.1f} GB VRAM (predicted)"
    assert disk == f"2 x {weights(names, 'umt5-xxl_parts_bf16_rtx40', 'vae_bf16_rtx40') / 1e9:.1f} GB"


def test_what_the_denoiser_needs_by_itself_is_what_was_predicted() -> None:
    bf16, fp8 = (predicted("1.3B", precision, 2)["stages"]["denoiser"] / 1e9 for precision in ("bf16", "fp8"))
    assert f"the denoiser needs {bf16:.1f} GB in bf16 and {fp8:.1f} GB in FP8" in README
    assert f"once take {predicted('14B', 'fp8', 2)['in_turns_bytes'] / 1e9:.1f} GB" in README


def test_what_a_cpu_needs_is_what_was_measured() -> None:
    *stages, run = result("small_memory_run.json")["rows"]
    assert run["exit_code"] == 0 and run["limit"] == "8GB" and len(stages) == 3
    disk = sum(stage["weight_bytes"] for stage in run["plan"]["memory"].values())
    assert cells("Wan 2.1 1.3B, 256x256, 17 frames")[-2:] == ["8 GB RAM", f"{disk / 1e9:.1f} GB"]
    (clip,) = [
        row["peak_rss_bytes"]
        for row in result("bench_avx2.json")["rows"]
        if (row["stage"], row["implementation"], row["precision"]) == ("whole_run", "mutoscope onnxruntime", "fp32")
    ]
    bundle = sum(path.stat().st_size for path in (ROOT / "runtime/mutoscope/builtin/bundle").rglob("*"))
    assert cells("built-in, 96x96")[-2:] == [f"{clip / 1e9:.1f} GB RAM", f"{bundle / 1e9:.2f} GB"]


def test_the_failures_that_the_built_in_models_page_names_are_those_judged() -> None:
    rows = result("prompt_following.json")["rows"]
    bouncing = [row for row in rows if "bouncing" in row["prompt"]]
    wrong = [row for row in rows if not row["shape"]]
    small = [row for row in wrong if re.search("small .* (square|triangle)", row["prompt"])]
    page = (ROOT / "docs/built-in-model.md").read_text("utf-8")
    assert f"{sum(not row['shape'] for row in bouncing)} of {len(bouncing)} clips" in page
    assert 2 * len(small) == len(wrong)  # "half of all wrong shapes"
    rings = [re.search("small .* ring", row["prompt"]) for row in rows if not row["colour"]]
    assert (sum(map(bool, rings)), len(rings)) == (7, 8)  # "seven of the eight wrong colours"
    assert 4 * sum(row["held_out"] for row in rows) == len(rows)  # "a quarter of the prompts"


def test_the_built_in_models_page_has_the_figures_of_the_pictures_that_were_judged() -> None:
    found = result("picture_following.json")
    right, other = found["right"]["all"], found["right"]["other_words"]
    bounces = [row["shape"] for row in found["rows"] if "bouncing" in row["prompt"]]
    page = (ROOT / "docs/built-in-model.md").read_text("utf-8")
    for said in (
        f"{right['psnr_db_worst']:.1f} dB the worst, {right['psnr_db_mean']:.1f} dB the mean",
        f"| colour kept | 95 % | {100 * right['colour']:.1f} % |",
        f"| background kept | 95 % | {100 * right['background']:.0f} % |",
        f"| 90 % | {100 * right['motion']:.1f} % |",
        f"| shape kept | | {100 * right['shape']:.1f} % |",
        f"{100 * other['shape']:.0f} % of the clips keep the picture's shape",
        f"of {len(bounces)} bouncing clips only {sum(bounces)} do",
    ):
        assert said in page


def test_wrong_shapes_are_counted_by_what_was_asked_for() -> None:
    asked = [("a small red square growing on a navy background", False), ("a red square growing", True)]
    rows = [{"prompt": prompt, "shape": shape} for prompt, shape in asked]
    assert wrong_shapes({"rows": rows}) == "1: small square 1 of 1"


@pytest.mark.parametrize(("values", "told"), [([1.91, 2.12, 2.0], "1.9 to 2.1"), ([0.21, 0.23], "0.2")])
def test_a_span_of_equal_ends_is_one_number(values: list[float], told: str) -> None:
    assert span(values) == told
