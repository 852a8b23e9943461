"""NVFP4 in torch against that of the graph, in NumPy, which has a test against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mutoscope_export.graphs.nvfp4 import BLOCK, block_scales, block_values, weight_scale
from mutoscope_export.quantization.calibration import ActivationRange
from mutoscope_export.quantization.nvfp4_numbers import fake_nvfp4, nvfp4_scale, nvfp4_weight


@pytest.mark.parametrize("spread", [1e-4, 0.03, 700.0])
def test_a_weight_is_that_of_the_graph(spread: float) -> None:
    weight = torch.randn(24, 48, generator=torch.Generator().manual_seed(3)) * spread
    weight[5] *= 1e-6
    weight[:, 16:32] = 0
    stored = weight.numpy().T
    scale = weight_scale(stored)
    scales = block_scales(stored, scale).astype(np.float32).repeat(BLOCK, axis=0)
    expected = block_values(stored, scale).astype(np.float32) * scales * scale
    assert np.array_equal(nvfp4_weight(weight).numpy(), expected.T)


def test_an_activation_has_the_scale_of_each_of_its_blocks_and_the_even_of_two_neighbours() -> None:
    x = torch.tensor([[6, 5, 3.5, 2.5, 1.75, 1.25, 0.75, 0.25] * 2, [448 * 6, 450 * 6, -1e6, *[0] * 13]])
    nearest = torch.tensor([[6, 4, 4, 2, 2, 1, 1, 0] * 2, [448 * 6, 448 * 6, -448 * 6, *[0] * 13]])
    assert torch.equal(fake_nvfp4(x, 1.0), nearest)
    assert torch.equal(fake_nvfp4(x / 8, 1 / 8), nearest / 8)


def test_the_scale_of_an_activation_leaves_a_tenth_of_room_above_what_was_seen() -> None:
    assert nvfp4_scale(ActivationRange(largest=448 * 6 / 1.11)) == 1.0
    assert nvfp4_scale(ActivationRange(largest=448 * 6 / 1.09)) == 2.0


def test_the_scale_of_what_was_always_zero_is_none_in_the_type_of_the_network() -> None:
    scale = torch.tensor(nvfp4_scale(ActivationRange()), dtype=torch.bfloat16)
    assert scale > 0
    assert torch.equal(fake_nvfp4(torch.zeros(1, 16), float(scale)), torch.zeros(1, 16))
