"""Random weights that follow what they are given: untrained, a picture or clip changes hardly anything in a video."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


def follow(checkpoint: Path, change: Callable[[str, Tensor], object]) -> None:
    """Makes more of what the VAE's encoder and the network are given.

    In the encoder a frame counts eight times as much as those before.

    Args:
        change: of any other weight, by its name and in place.
    """
    for path in checkpoint.glob("*/diffusion_pytorch_model.safetensors"):
        weights = load_file(path)
        for name, weight in weights.items():
            if name.startswith("encoder.") and weight.ndim == 5 and weight.shape[2] == 3:
                weight[:, :, -1] *= 8
            elif name == "encoder.conv_in.bias":
                weight.zero_()
            else:
                change(name, weight)
        save_file(weights, path)
