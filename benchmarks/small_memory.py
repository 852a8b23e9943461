"""Shows in how little memory Wan 2.1 1.3B runs on a CPU in int8: the whole pipeline at its real size, random weights.

    python -m benchmarks.small_memory --workspace DIR [--limit 8GB 6GB 4GB] [--output FILE.json]

Makes a bundle with the text encoder UMT5-XXL, the denoiser 1.3B and the VAE of Wan 2.1 once (about 9 GB in DIR), and
runs `mutoscope generate` on it, each in a process of its own. Neither time nor memory depends on what the weights are,
so they are windows onto one small array, and no network of this size is ever in memory to make the bundle.

Two figures count. "resident" is all that a process had in memory at its peak, pages of the mapped weights among them;
the system takes those back when it needs them, and reads them again. "anonymous" is what it cannot take back. A run
under a limit is inside a control group that the kernel holds to it, pages of files included (needs root and the memory
controller; the kernel kills what does not fit).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from .export_memory import CONFIG as DENOISER
from .graph_cases import write_graphs

TEXT_ENCODER = {
    "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
MAX_SEQUENCE_LENGTH = 512
PRECISION = "int8"


def make_network(component: str) -> Any:
    """A network of real size whose bfloat16 weights are windows onto one array of random numbers."""
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        network = {
            "text_encoder": lambda: UMT5EncoderModel(UMT5Config(**TEXT_ENCODER)),
            "transformer": lambda: WanTransformer3DModel(**DENOISER),
            "vae": AutoencoderKLWan,
        }[component]()
    owners = [(module, name) for module in network.modules() for name, there in module._parameters.items() if there is not None]
    tables = torch.nn.Embedding
    widest = max(getattr(module, name).numel() for module, name in owners if not isinstance(module, tables))
    pool = torch.empty(max(widest, 1 << 19) + len(owners), dtype=torch.bfloat16).normal_(0, 0.02, generator=torch.manual_seed(0))
    for index, (module, name) in enumerate(owners):
        meta, start = getattr(module, name), pool[index:]
        if isinstance(module, tables) and meta.numel() > widest:  # each row begins one number after the one before
            window = pool.as_strided(meta.shape, (1, 1))
        else:
            window = start[: meta.numel()].view(meta.shape)
        setattr(module, name, torch.nn.Parameter(window, requires_grad=False))
    return network.eval()


def make_bundle(folder: Path) -> None:
    """A bundle around the graphs of real size; the tokenizer is that of a small random checkpoint."""
    import msgspec
    from mutoscope.bundle import Graph, Text, write_manifest
    from mutoscope_export.export import _declared, export_checkpoint
    from mutoscope_export.families.wan import sources
    from mutoscope_export.random_checkpoint import random_checkpoint

    with tempfile.TemporaryDirectory() as name:
        random_checkpoint(Path(name) / "checkpoint", latent_channels=DENOISER["in_channels"])
        manifest = export_checkpoint(Path(name) / "checkpoint", folder, precisions=[PRECISION], overwrite=True).manifest
    graphs = []
    network, component = None, None
    for source in sources([PRECISION]):
        if source.component != component:
            network, component = make_network(source.component), source.component
        for form in source.forms:
            shutil.rmtree(folder / source.folder(form))
            print("write", source.folder(form), flush=True)
            write_graphs(source.role, network, {form.precision: folder / source.folder(form)})
            inputs, outputs = _declared(source.inputs(network), form), _declared(source.outputs(network), form)
            file = f"{source.folder(form)}/model.onnx"
            graphs.append(Graph(role=source.role, precision=form.precision, file=file, inputs=inputs, outputs=outputs))
    text = Text(max_sequence_length=MAX_SEQUENCE_LENGTH, width=TEXT_ENCODER["d_model"], pad_token_id=0)
    write_manifest(folder, msgspec.structs.replace(manifest, graphs=tuple(graphs), text=text))


if __name__ == "__main__":
    import sys

    make_bundle(Path(sys.argv[1]))
