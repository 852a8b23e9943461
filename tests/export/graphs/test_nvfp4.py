"""NVFP4 against the numbers of its formats by their definitions, each value compared with all of them."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from mutoscope_export.graphs.nvfp4 import BLOCK, block_scales, block_values, tensor_scale, weight_scale

RANDOM = np.random.default_rng(4)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])  # two bits of exponent with bias 1, one of mantissa
E4M3 = np.array(
    [mantissa / 8 * 2.0**-6 for mantissa in range(8)]
    + [(1 + mantissa / 8) * 2.0 ** (exponent - 7) for exponent in range(1, 16) for mantissa in range(8)][:-1]
)


def nearest(x: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The nearest of `numbers` with the sign of each value; of two as near, the one of even mantissa."""
    distance = np.abs(np.abs(x)[..., None] - numbers)
    even = np.arange(len(numbers)) % 2 == 0
    best = np.where(distance == distance.min(-1, keepdims=True), np.where(even, 2, 1), 0).argmax(-1)
    return np.sign(x) * numbers[best]


def stored(block: np.ndarray, scale: float, top: float) -> tuple[np.ndarray, float]:
    """A block of 16 in float64, and its scale over that of the whole."""
    of_block = max(float(nearest(np.abs(block).max() / scale / top, E4M3)), E4M3[1])
    return nearest(block / scale / of_block, E2M1) * of_block * scale, of_block


@pytest.mark.parametrize("spread", [0.02, 300.0])
def test_a_weight_is_that_of_the_definition_with_the_better_of_two_scales_for_each_block(spread: float) -> None:
    weight = (RANDOM.standard_normal((64, 5)) * spread).astype(np.float32)
    weight[16:32, 2] *= 1e-3
    scale = weight_scale(weight)
    scales, values = (of(weight, scale).astype(np.float64) for of in (block_scales, block_values))
    tops = set()
    for number, column in itertools.product(range(4), range(5)):
        rows = slice(BLOCK * number, BLOCK * (number + 1))
        block = weight[rows, column].astype(np.float64)
        (with_six, six), (with_four, four) = (stored(block, scale, top) for top in (6, 4))
        six_is_better = np.square(with_six - block).sum() <= np.square(with_four - block).sum()
        tops.add(six_is_better)
        assert scales[number, column] == (six if six_is_better else four)
        np.testing.assert_allclose(
            values[rows, column] * scales[number, column] * scale, with_six if six_is_better else with_four, rtol=1e-6
        )
    assert tops == {True, False}  # both were needed


def test_each_of_the_numbers_of_a_format_comes_out_as_it_is() -> None:
    block = np.array([*E2M1, *-E2M1], np.float32)[:, None]
    scale = weight_scale(block)
    assert block_scales(block, scale).astype(np.float64) * scale == [[1.0]]
    assert np.array_equal(block_values(block, scale).astype(np.float32), block)


def test_halfway_between_two_numbers_the_even_one_is_taken() -> None:
    halfway = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    block = np.array([[value, 6, *[4] * 14] for value in halfway], np.float32).T  # the fours need the top 6
    values = block_values(np.concatenate([block, -block]), 0.5).astype(np.float32)
    assert list(values[0]) == [0, 1, 1, 2, 2, 4, 4] == list(-values[16])


@pytest.mark.parametrize("largest", [1e-30, 0.3, 447.0, 448.0, 6 * 448.0, 7e20])
def test_the_scale_of_a_tensor_is_the_least_power_of_two_with_which_no_scale_of_a_block_is_cut_off(
    largest: float,
) -> None:
    scale = tensor_scale(largest)
    assert np.frexp(scale)[0] == 0.5
    assert largest / 6 / scale <= 448 < largest / 6 / (scale / 2)


def test_zeros_stay_zeros_and_have_finite_scales() -> None:
    weight = np.zeros((32, 2), np.float32)
    weight[0, 0] = 1.0
    scale = weight_scale(weight)
    assert (block_scales(weight, scale).astype(np.float32) > 0).all()
    assert not block_values(weight, scale).astype(np.float32)[:, 1].any()
    assert ml_dtypes.bfloat16(weight_scale(np.zeros((16, 1), np.float32))) > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_has_no_finite_scale(bad: float) -> None:
    assert not np.isfinite(weight_scale(np.full((16, 1), bad, np.float32)))


def test_the_product_of_a_value_and_its_scales_is_exact_in_bfloat16() -> None:
    products = E2M1[:, None] * E4M3 * tensor_scale(0.37)
    assert np.array_equal(products.astype(ml_dtypes.bfloat16).astype(np.float64), products)
