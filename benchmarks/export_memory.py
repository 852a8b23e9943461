"""Measures time and peak memory of `mutoscope export` for denoisers of real size, stage by stage, comparison included.

    python -m benchmarks.export_memory --workspace DIR [--model 14B] [--precision bf16] [--part-size 4GB]
        [--output FILE]

Knows the layout of a checkpoint. Its transformer is in bfloat16, the other components are small. Checkpoint and bundle
are kept in DIR, and the checkpoint is taken from there the next time; of 14B each takes 29 GB in bfloat16.

Two figures of memory count. `peak_rss_bytes` is all that the process had in memory, pages of mapped weights among them,
which the system takes back when it needs them. `peak_anonymous_bytes` is what it cannot take back.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from mutoscope.commands.arguments import as_type, one_of
from mutoscope.values.parameters import BYTES
from mutoscope_bench.measuring import Answer, PeakMemory, Run, measure_once, serve
from mutoscope_engines.precisions import PRECISIONS

from .real_sizes import MODELS, UMT5_XXL, make_network
from .reporting import write_result

SIZES = {name: model for name, model in MODELS.items() if model.experts == 1 and not model.takes_whole_clip}
SHARDS = "diffusion_pytorch_model{suffix}.safetensors"


def make_checkpoint(model: str, folder: Path, max_shard_size: str = "4GB") -> None:
    """One in the Diffusers layout, with a transformer of this model."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from mutoscope_export.families.wan.random_checkpoint import random_checkpoint
    from safetensors.torch import save_file

    size = SIZES[model]
    random_checkpoint(
        folder, latent_channels=size.latent_channels, text_width=UMT5_XXL["d_model"], dtype=torch.bfloat16,
        expand_timesteps=size.index.get("expand_timesteps", False),
    )  # fmt: skip
    transformer = folder / "transformer"
    shutil.rmtree(transformer)
    network = make_network("transformer", size.transformer)
    network.save_config(transformer)
    weights = network.state_dict()
    # Windows onto one array look like one weight under many names, which is stored once.
    shapes = {name: torch.empty_like(weight, device="meta") for name, weight in weights.items()}
    shards = split_torch_state_dict_into_shards(shapes, filename_pattern=SHARDS, max_shard_size=max_shard_size)
    for file, names in shards.filename_to_tensors.items():
        save_file({name: weights[name].clone() for name in names}, transformer / file)
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (transformer / f"{SHARDS.format(suffix='')}.index.json").write_text(json.dumps(index))


def load(spec: dict[str, Any]) -> Run:
    """An export, told by the stages that have to do with the denoiser."""
    from mutoscope_export.export import export_checkpoint
    from mutoscope_export.options import DEFAULT_PART_BYTES, ExportOptions

    def run() -> Answer:
        stages: list[Answer] = []
        memory = PeakMemory()
        began_s = time.perf_counter()

        def began(stage: str) -> None:
            nonlocal began_s
            if stages:
                stages[-1] |= {"elapsed_s": round(time.perf_counter() - began_s, 1), **memory.so_far()}
            memory.restart()
            began_s = time.perf_counter()
            stages.append({"stage": stage})
            print(stage, file=sys.stderr)

        export_checkpoint(
            spec["checkpoint"],
            spec["bundle"],
            ExportOptions(
                precision=tuple(spec["precisions"]), part_size=spec["part_bytes"] or DEFAULT_PART_BYTES, overwrite=True
            ),
            on_progress=began,
        )
        return {"stages": [row for row in stages if row["stage"].endswith("transformer") or "denoiser" in row["stage"]]}

    return run


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, help="folder for the checkpoint and the bundle")
    parser.add_argument("--model", type=one_of("model", list(SIZES)), default="1.3B", help=", ".join(SIZES))
    parser.add_argument("--precision", nargs="+", type=one_of("precision", list(PRECISIONS)), default=["fp32"])
    parser.add_argument("--part-size", type=as_type(BYTES), help="as of `mutoscope export`")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return serve(partial(load, given.worker))
    if given.workspace is None:
        parser.error("--workspace is missing: a folder with room for the checkpoint and the bundle")
    checkpoint = given.workspace / f"checkpoint-{given.model}"
    if not checkpoint.is_dir():
        make_checkpoint(given.model, given.workspace / "making")
        (given.workspace / "making").rename(checkpoint)
    asked = {"precisions": given.precision, "part_bytes": given.part_size}
    spec = {"checkpoint": str(checkpoint), "bundle": str(given.workspace / f"bundle-{given.model}"), **asked}
    first, _ = measure_once(__spec__.name, spec)
    files = {
        path.relative_to(spec["bundle"]).as_posix(): path.stat().st_size
        for path in sorted((Path(spec["bundle"]) / "denoiser").iterdir())
    }
    write_result(given.output, first["stages"], model=given.model, **asked, file_bytes=files)


if __name__ == "__main__":
    main()
