"""NVFP4: values of four bits in blocks of 16, a scale in E4M3 for each block, and one scale for the whole tensor.

Knows numbers. Knows nothing of graphs or of networks.

The scale of the tensor is a power of two. So every product of the three is exact in bfloat16, and it does not matter in
which order, or in which type, a library multiplies them. It costs nothing, because E4M3 is a floating-point format.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from .number_formats import E4M3, TINY, Array, NumberFormat

E2M1 = NumberFormat("nvfp4", ir.DataType.FLOAT4E2M1, 6.0, 1.0)  # 0, 0.5, 1, 1.5, 2, 3, 4, 6
BLOCK = 16  # values that share a scale
LEAST_SCALE = 2.0**-9  # of E4M3, beside zero
# What the largest value of a block of a weight may become. With 4 the largest values lie closer together and the
# smallest further apart; a block takes what suits it better ("four over six").
BLOCK_TOPS = (6.0, 4.0)


def tensor_scale(largest: float, top: float = E2M1.largest) -> float:
    """The power of two with which the scales of all blocks are in the range of E4M3.

    Args:
        largest: of the magnitudes of the whole tensor.
        top: what the largest value of a block becomes.
    """
    power = math.ceil(math.log2(max(largest, TINY) / (top * E4M3.largest)))
    return max(2.0**power, TINY)  # a power of two, too; bfloat16 would make zero of a smaller one


def weight_scale(weight: Array) -> float:
    """The scale of a whole weight; it is not finite where the weight is not."""
    largest = float(np.abs(weight.astype(np.float32)).max(initial=0.0))
    return tensor_scale(largest, min(BLOCK_TOPS)) if math.isfinite(largest) else largest


def block_scales(weight: Array, scale: float) -> Array:
    """The scale of each block of a weight `[in, out]`, over that of the whole: E4M3, `[in / 16, out]`.

    Of the two scales that put the largest value of a block to 6 or to 4, the one with the smaller squared error.
    """
    blocks = _blocks(weight, scale)
    largest = np.abs(blocks).max(axis=1)
    candidates = [E4M3.nearest(np.maximum(largest / top, LEAST_SCALE)) for top in BLOCK_TOPS]
    errors = [_squared_error(blocks, each.astype(np.float32)) for each in candidates]
    best: Array = np.where(errors[0] <= errors[1], *candidates)
    return best


def block_values(weight: Array, scale: float) -> Array:
    """A weight `[in, out]` over its scales: E2M1, of the same shape."""
    scales = block_scales(weight, scale).astype(np.float32)
    return E2M1.nearest(_blocks(weight, scale) / scales[:, None]).reshape(weight.shape)


def _blocks(weight: Array, scale: float) -> Array:
    """`[in, out]` over the scale of the whole: f32 `[in / 16, 16, out]`."""
    return weight.astype(np.float32).reshape(-1, BLOCK, weight.shape[1]) / np.float32(scale)


def _squared_error(blocks: Array, scales: Array) -> Array:
    stored = E2M1.nearest(blocks / scales[:, None]).astype(np.float32) * scales[:, None]
    error: Array = np.square(stored - blocks).sum(axis=1)
    return error
