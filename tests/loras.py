"""LoRAs of random numbers, in the spellings that Diffusers and PEFT read, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from mutoscope_export.families.wan.original_names import original_name
from safetensors.torch import save_file
from torch import Tensor

LINEARS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]


def linears(transformer: Any) -> list[str]:
    """The linear layers of its blocks."""
    modules = transformer.named_modules()
    return [name for name, module in modules if isinstance(module, torch.nn.Linear) and name.startswith("blocks.")]


def a_lora(
    transformer: Any,
    path: Path,
    *,
    spelling: str,
    alpha: float | None = None,
    seed: int = 3,
    rank: int = 4,
    size: float = 0.05,
) -> Path:
    """On every linear of the blocks, in one of the spellings "peft", "original" and "kohya".

    Args:
        size: of its upper halves; with the default it is about as large as what it changes.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    metadata = {}
    for name in linears(transformer):
        module = transformer.get_submodule(name)
        stem = f"transformer.{name}" if spelling == "peft" else f"diffusion_model.{original_name(name)}"
        down, up = ("lora_A", "lora_B") if spelling == "peft" else ("lora_down", "lora_up")
        if spelling == "kohya":
            stem = "lora_unet_" + original_name(name).replace(".", "_")
        tensors[f"{stem}.{down}.weight"] = torch.randn(rank, module.in_features, generator=generator)
        tensors[f"{stem}.{up}.weight"] = size * torch.randn(module.out_features, rank, generator=generator)
        if alpha is not None and spelling != "peft":
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    if alpha is not None and spelling == "peft":
        noted = {"transformer.r": rank, "transformer.lora_alpha": alpha, "transformer.target_modules": LINEARS}
        metadata["lora_adapter_metadata"] = json.dumps(noted)
    save_file(tensors, path, metadata)
    return path
