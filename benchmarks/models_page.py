"""Writes the tables of docs/models.md and docs/shipping.md from the committed results, so that no figure is typed.

    python -m benchmarks.models_page

Knows the names of checkpoints on the Hugging Face hub, and what of the results stands for each. Measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .predicted_plans import LIMITS, UNLIMITED
from .results_figures import Result, gigabytes
from .shipped_sizes import folders_table

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks/results"
PAGE = REPOSITORY / "docs/models.md"
SHIPPING = REPOSITORY / "docs/shipping.md"
NETWORKS = ("text_encoder", "image_encoder", "transformer", "transformer_2", "vae")
BUNDLES = {"int8": "float32", "bf16": "bfloat16", "fp8": "bfloat16"}  # and the type of what is not quantized with it


@dataclass(frozen=True)
class Checkpoint:
    """One on the hub: its names, and the model that it is."""

    names: tuple[str, ...]
    model: str


CHECKPOINTS = (
    Checkpoint(("Wan2.2-TI2V-5B", "FastWan2.2-TI2V-5B-FullAttn"), "5B"),
    Checkpoint(("Wan2.1-T2V-1.3B",), "1.3B"),
    Checkpoint(("Wan2.1-T2V-14B",), "14B"),
    Checkpoint(("Wan2.2-T2V-A14B",), "A14B"),
    Checkpoint(("Wan2.2-I2V-A14B",), "I2V-A14B"),
    Checkpoint(("Wan2.1-I2V-14B-480P", "-720P"), "I2V-14B"),
    Checkpoint(("Wan2.1-FLF2V-14B-720P",), "FLF2V-14B"),
    Checkpoint(("Wan2.1-VACE-1.3B",), "VACE-1.3B"),
    Checkpoint(("Wan2.1-VACE-14B",), "VACE-14B"),
)


@dataclass(frozen=True)
class Run:
    """One row of predicted memory, of engines for RTX 40: a model as it is called on the page, and its denoiser."""

    label: str
    model: str
    precision: str
    shapes: str
    guidance: bool
    parts: int = 1
    lora_rank: int = 0


RUNS = (
    Run("Wan 2.2 5B", "5B", "fp8", "704x1280x121", guidance=True),
    Run("FastWan 5B, or any without guidance", "5B", "fp8", "704x1280x121", guidance=False),
    Run("the same with LoRAs, ranks together 64", "5B", "fp8", "704x1280x121", guidance=False, lora_rank=64),
    Run("Wan 2.2 5B", "5B", "bf16", "704x1280x121", guidance=True),
    Run("Wan 2.1 1.3B", "1.3B", "fp8", "480x832x81", guidance=True),
    Run("Wan 2.1 1.3B", "1.3B", "bf16", "480x832x81", guidance=True),
    Run("Wan 2.1 14B, Wan 2.2 T2V-A14B", "14B", "fp8", "480x832x81", guidance=True, parts=14),
    Run("the same with four-step weights", "14B", "fp8", "480x832x81", guidance=False, parts=14),
    Run("Wan 2.1 14B, Wan 2.2 T2V-A14B", "14B", "fp8", "720x1280x81", guidance=True, parts=14),
    Run("Wan 2.2 I2V-A14B", "I2V-A14B", "fp8", "480x832x81", guidance=True, parts=14),
    Run("the same with four-step weights", "I2V-A14B", "fp8", "480x832x81", guidance=False, parts=14),
    Run("Wan 2.2 I2V-A14B", "I2V-A14B", "fp8", "720x1280x81", guidance=True, parts=14),
)
STAGES = {
    "text_encoder": "text encoder", "vae_encoder": "VAE encoder", "denoiser": "denoiser", "vae_decoder": "VAE decoder"
}  # fmt: skip


def sizes_table(result: Result) -> str:
    """Of each checkpoint: parameters, what it takes on disk, and what bundles of it take."""
    lines = [
        "| checkpoint | parameters: text encoder, denoiser, VAE | its files in float32, in bfloat16 | "
        + " | ".join(f"bundle in `{name}`" for name in BUNDLES) + " |",
        "|---" * (3 + len(BUNDLES)) + "|",
    ]  # fmt: skip
    for checkpoint in CHECKPOINTS:
        rows = [row for row in result["rows"] if row["model"] == checkpoint.model]
        rows.sort(key=lambda row: NETWORKS.index(row["component"]))
        counts = {row["component"]: f"{row['parameters'] / 1e9:.2f}" for row in rows}
        denoiser = ("2 x " if "transformer_2" in counts else "") + counts["transformer"]
        image = f", image encoder {counts['image_encoder']}" if "image_encoder" in counts else ""
        parameters = f"{counts['text_encoder']}, {denoiser}, {counts['vae']} billion{image}"
        files = ", ".join(gigabytes(sum(row["bytes"][name] for row in rows)) for name in ("float32", "bfloat16"))
        bundles = [gigabytes(sum(_in_bundle(row, name) for row in rows)) for name in BUNDLES]
        lines.append(f"| {', '.join(checkpoint.names)} | {parameters} | {files} | {' | '.join(bundles)} |")
    return "\n".join(lines) + "\n"


def _in_bundle(row: Result, precision: str) -> int:
    """Of one component, whose text encoder has no form in eight bits for GPUs."""
    sizes: dict[str, int] = row["bytes"]
    base = "int8" if precision == "int8" else "bf16"
    return sizes.get(precision, sizes.get(base, sizes[BUNDLES[precision]]))


def memory_table(result: Result) -> str:
    """Of each run: what its largest stages take, and how they run on cards of several sizes."""
    limits = " | ".join(f"{limit.removesuffix('GB')} GB" for limit in LIMITS)
    lines = [f"| model | precision, size | guidance | everything whole | {limits} |", "|---" * (4 + len(LIMITS)) + "|"]
    for run in RUNS:
        rows = {row["limit"]: row for row in result["rows"] if _is_of(row, run)}
        whole = ", ".join(
            f"{STAGES[name]} {gigabytes(stage['peak_bytes'])}" for name, stage in rows[UNLIMITED]["stages"].items()
        )
        cells = " | ".join(_cell(rows[limit]) for limit in LIMITS)
        lines.append(
            f"| {run.label} | {run.precision}, {run.shapes} | {'yes' if run.guidance else 'no'} | {whole} | {cells} |"
        )
    return "\n".join(lines) + "\n"


def _is_of(row: Result, run: Run) -> bool:
    names = ("model", "precision", "shapes", "guidance", "parts", "lora_rank")
    return row["target"] == "rtx40" and all(row[name] == getattr(run, name) for name in names)


def _cell(row: Result) -> str:
    if "refused" in row:
        return f"no: {STAGES[row['refused']]}, {gigabytes(row['least_bytes'])}"
    told = []
    for name, stage in row["stages"].items():
        if stage["streamed_bytes"]:
            often = " twice" if stage["calls_per_step"] == 2 else ""
            told.append(f"{STAGES[name]} streams {gigabytes(stage['streamed_bytes'])}{often}")
        elif name == "vae_decoder" and stage["name"] != "whole":
            told.append(f"decoder in {stage['name'].split()[0]} tiles")
        elif stage["name"] != "whole":
            told.append(stage["name"].replace("in a call", "at a time"))
    return ", ".join(told) or "yes"


TABLES: Mapping[Path, Mapping[str, tuple[Callable[[Result], str], str]]] = {
    PAGE: {"sizes": (sizes_table, "model_sizes.json"), "memory": (memory_table, "predicted_plans.json")},
    SHIPPING: {"folders": (folders_table, "shipped_sizes.json")},
}


def made_anew(page: Path) -> str:
    """The text of a page with its tables made anew."""
    text = page.read_text("utf-8")
    for name, (table, file) in TABLES[page].items():
        begin, end = (f"<!-- {where} of the table of {name} -->\n" for where in ("begin", "end"))
        before, rest = text.split(begin)
        _, after = rest.split(end)
        made = table(json.loads((RESULTS / file).read_text("utf-8")))
        text = f"{before}{begin}{made}{end}{after}"
    return text


def main() -> None:
    """Writes the pages."""
    for page in TABLES:
        page.write_text(made_anew(page), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
