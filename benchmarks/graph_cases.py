"""What several benchmarks run: a denoiser of Wan 2.1 1.3B's width with two blocks, and random feeds for any graph.

Knows how to export one, and shapes. Knows nothing of time. The weights are random: neither speed nor memory depends on
them. Two blocks of the thirty, because all blocks are alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mutoscope.engine_shapes import sized
from numpy.typing import NDArray

Feeds = dict[str, NDArray[Any]]

WIDTH_13B = {
    "latent_channels": 16, "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "text_dim": 4096,
    "freq_dim": 256, "num_layers": 2,
}  # fmt: skip
TINY: dict[str, int] = {"latent_channels": 4}
SIZES_13B = {"B": 2, "L": 512, "F": 5, "h": 32, "w": 32, "K": 1}  # 1280 tokens
SIZES_TINY = {"B": 2, "L": 8, "F": 2, "h": 4, "w": 4, "K": 1}
PRECISIONS = ("fp32", "int8")
# With these, `next_state` is nothing but the velocity, summed with a guidance scale of 5.
ONLY_VELOCITY = {"timestep": [700.0], "guidance_weights": [-4.0, 5.0], "solver_a": [[0.0]], "solver_b": [1.0]}


def make_denoiser(folder: Path, config: Mapping[str, int], sizes: Mapping[str, int]) -> None:
    """Writes `transformer/` in the Diffusers layout, `fp32/` and `int8/` with `model.onnx`, and `feeds.npz`.

    In a process of its own, so that no exporter's memory counts as that of what is measured.
    """
    task = json.dumps([str(folder), dict(config), dict(sizes)])
    subprocess.run([sys.executable, "-m", __spec__.name, task], check=True, stdout=sys.stderr)


def _make_denoiser(folder: Path, config: Mapping[str, int], sizes: Mapping[str, int]) -> None:
    from diffusers import WanTransformer3DModel
    from mutoscope_export.random_checkpoint import random_checkpoint

    random_checkpoint(folder, **config)
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer").eval()
    inputs = write_graphs("denoiser", transformer, {precision: folder / precision for precision in PRECISIONS})
    feeds = random_feeds(inputs, sizes)
    feeds |= {name: np.asarray(value, np.float32) for name, value in ONLY_VELOCITY.items()}
    np.savez(folder / "feeds.npz", **feeds)


def write_graphs(
    role: str, network: Any, folders: Mapping[str, Path], calibrated: Sequence[Callable[[Any], bool]] = ()
) -> list[tuple[str, str, tuple[int | str, ...]]]:
    """Writes a network's graph in each precision into the folder named for it, as export does; returns its inputs.

    `calibrated` are the passes that a calibration would give.
    """
    import torch
    from mutoscope_export.families.wan import NARROWED, sources
    from mutoscope_export.graph import NETWORK, dynamic_shapes, trace, write_graph
    from mutoscope_export.passes.network_type import TRACED
    from mutoscope_export.weight_files import WeightFolder

    (source,) = (source for source in sources(list(folders)) if source.role == role)
    inputs, examples = source.inputs(network), source.examples(network)[0]
    with torch.no_grad():
        traced = trace(
            source.module(network, TRACED),
            {name: examples[name].to(TRACED) if dtype == NETWORK else examples[name] for name, dtype, _ in inputs},
            dynamic_shapes(inputs),
            [name for name, _, _ in source.outputs(network)],
        )
    for form in source.forms:
        if form.precision in folders:
            passes = (*(calibrated if form.precision in NARROWED else ()), *form.passes)
            write_graph(traced, WeightFolder(folders[form.precision]), network_type=form.network_type, passes=passes)
    return list(inputs)


def random_feeds(inputs: Sequence[tuple[str, str, tuple[int | str, ...]]], sizes: Mapping[str, int]) -> Feeds:
    """Normally distributed values for a graph's inputs, the same every time. `sizes` gives the symbols their values."""
    random = np.random.default_rng(0)
    return {name: random.standard_normal(sized(shape, sizes)).astype(dtype) for name, dtype, shape in inputs}


if __name__ == "__main__":
    given_folder, *given = json.loads(sys.argv[1])
    _make_denoiser(Path(given_folder), *given)
