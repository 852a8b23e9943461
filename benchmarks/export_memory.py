"""Measures time and peak memory of exporting a denoiser of real size, Wan 2.1 1.3B, from a bfloat16 checkpoint.

Weights are random: neither memory nor time depends on them. Making the checkpoint and each export are processes of
their own, so that a peak belongs to one export alone. Needs about 9 GB of free disk.

    python -m benchmarks.export_memory [--precision fp32 int8] [--output FILE]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutoscope.bench.machine import describe
from mutoscope.bench.measuring import peak_rss_bytes
from mutoscope_peers.random_models import write_graphs

CONFIG = {
    "patch_size": (1, 2, 2), "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16,
    "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 8960, "num_layers": 30,
}  # fmt: skip
BUDGET_BYTES = 8_000_000_000
PRECISIONS = ("fp32", "bf16", "int8")


def make_checkpoint(folder: Path) -> None:
    """Random bfloat16 weights in the Diffusers layout; never float32 in memory."""
    import torch
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        model = WanTransformer3DModel(**CONFIG)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
    model.save_pretrained(folder)


def export(checkpoint: Path, destination: Path, precision: str) -> None:
    """Exports once and prints what it took as JSON."""
    import torch
    from diffusers import WanTransformer3DModel
    from mutoscope_export.families import wan  # noqa: F401  loaded here, so that its memory is not the export's

    imported_bytes = peak_rss_bytes()
    start = time.perf_counter()
    transformer = WanTransformer3DModel.from_pretrained(checkpoint, torch_dtype=torch.bfloat16)
    write_graphs("denoiser", transformer, {precision: destination})
    measured = {
        "precision": precision,
        "elapsed_s": round(time.perf_counter() - start, 1),
        "peak_bytes_before": imported_bytes,
        "peak_bytes": peak_rss_bytes(),
        "file_bytes": {path.name: path.stat().st_size for path in sorted(destination.iterdir())},
    }
    print(json.dumps(measured))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "export_memory_wan13b.json")
    parser.add_argument(
        "--workspace", type=Path, help="folder for the checkpoint and the graphs; default: a temporary one"
    )
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        name, *paths = arguments.step
        make_checkpoint(Path(paths[0])) if name == "make" else export(Path(paths[0]), Path(paths[1]), name)
        return 0

    runs = []
    with tempfile.TemporaryDirectory(dir=arguments.workspace) as workspace:
        checkpoint = Path(workspace) / "transformer"
        _run_step("make", checkpoint)
        for precision in arguments.precision:
            runs.append(json.loads(_run_step(precision, checkpoint, Path(workspace) / precision).splitlines()[-1]))
            print(json.dumps(runs[-1]), file=sys.stderr)
    result = {"model": CONFIG, "budget_bytes": BUDGET_BYTES, "machine": describe(), "runs": runs}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    return int(any(run["peak_bytes"] > BUDGET_BYTES for run in runs))


def _run_step(name: str, *paths: Path) -> str:
    command = [sys.executable, "-m", __spec__.name, "--step", name, *map(str, paths)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
