"""Writes the weights of a network as its library reads them, changed by what is merged into them.

One weight is in memory at a time; what is written is mapped when the network is loaded, as that of any checkpoint.
Knows files, and nothing of any network.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from .given_weights import GivenWeights
from .stored_weights import DTYPES

_FILE = "diffusion_pytorch_model.safetensors"

Change = Callable[[str, Tensor], Tensor]
"""Takes the name of a parameter and its value, which it must not write to, and gives the new value in float32."""


def stage(config: Path, weights: GivenWeights, destination: Path, change: Change | None = None) -> Path:
    """Makes a folder for a network, in the Diffusers layout.

    Args:
        config: its configuration file, which is copied.
        destination: the folder, which does not exist yet.
        change: makes of each weight the one that is written, in float32; without it they keep `weights.dtype`.

    Returns:
        `destination`.

    Raises:
        OSError: the disk is full.
    """
    dtype = weights.dtype if change is None else torch.float32
    (tag,) = (tag for tag, known in DTYPES.items() if known == dtype)
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, weight in weights.weights.items():
        begin, end = end, end + prod(weight.shape) * dtype.itemsize
        header[name] = {"dtype": tag, "shape": list(weight.shape), "data_offsets": [begin, end]}  # type: ignore[dict-item]
    destination.mkdir(parents=True)
    shutil.copyfile(config, destination / config.name)
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)  # so that every weight is aligned in the mapped file
    with (destination / _FILE).open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        for name, weight in weights.weights.items():
            value = weight.read() if change is None else change(name, weight.read())
            value.to(dtype).contiguous().reshape(-1).view(torch.uint8).numpy().tofile(file)
    return destination
