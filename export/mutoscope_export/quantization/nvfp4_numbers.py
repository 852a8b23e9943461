"""The arithmetic of NVFP4 in torch: activations as engines quantize them, weights as export does.

Knows the format. It runs wherever the network is. Knows nothing of graphs or of what is measured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..graphs.number_formats import E4M3
from ..graphs.nvfp4 import BLOCK, BLOCK_TOPS, E2M1, LEAST_SCALE, tensor_scale
from .calibration import MARGIN, ActivationRange


def nvfp4_scale(spread: ActivationRange) -> float:
    """The scale of a whole activation, whose range holds the largest value, with a margin."""
    return tensor_scale(spread.largest * MARGIN)


def fake_nvfp4(x: Tensor, scale: float, top: float = E2M1.largest) -> Tensor:
    """Float32 to NVFP4 and back, in blocks along the last axis, whose length is a multiple of 16.

    Args:
        scale: of the whole; blocks that need more than 448 times it are cut off.
        top: what the largest value of a block becomes.
    """
    blocks = x.unflatten(-1, (-1, BLOCK)) / scale
    scales = (blocks.abs().amax(-1, keepdim=True) / top).clamp(LEAST_SCALE, E4M3.largest)
    scales = scales.to(torch.float8_e4m3fn).to(x.dtype)
    scaled = (blocks / scales).clamp(-E2M1.largest, E2M1.largest)
    # Steps of 0.5 below 2, of 1 below 4, of 2 from there on; torch rounds to the even one of two neighbours, too.
    step = torch.where(scaled.abs() < 2, 0.5, torch.where(scaled.abs() < 4, 1.0, 2.0))
    result: Tensor = (scaled / step).round() * step * scales * scale
    return result.flatten(-2)


def nvfp4_weight(weight: Tensor) -> Tensor:
    """`[out, in]` to NVFP4 and back, each block with the one of its two scales that has the smaller squared error."""
    scale = tensor_scale(float(weight.abs().max()), min(BLOCK_TOPS))
    six, four = (fake_nvfp4(weight, scale, top) for top in BLOCK_TOPS)
    errors = [(each - weight).square().unflatten(-1, (-1, BLOCK)).sum(-1, keepdim=True) for each in (six, four)]
    return torch.where((errors[0] <= errors[1]).expand(-1, -1, BLOCK).flatten(-2), six, four)
