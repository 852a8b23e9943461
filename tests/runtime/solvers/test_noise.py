"""The NumPy random stream against torch's own CPU generator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from mutoscope.solvers.noise import SEED_MAX, SEED_MIN, NormalStream

SEEDS = (0, 1, 7, 2**31, 2**32 - 1, 2**40 + 3, -1, SEED_MIN, SEED_MAX)
SHAPES = [(size,) for size in range(1, 41)] + [(), (0,), (3, 0), (1000,), (7, 11, 13), (1, 16, 3, 5, 9), (2, 3, 4, 5)]
HAS_X86_VECTORS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def reference(seed: int, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32).numpy()


@pytest.mark.parametrize("seed", SEEDS)
def test_values_are_those_of_torch_for_every_shape(seed: int) -> None:
    for shape in SHAPES:
        values = NormalStream(seed).draw(shape)
        assert values.dtype == np.float32 and values.shape == shape
        if HAS_X86_VECTORS or math.prod(shape) < 16:
            np.testing.assert_array_equal(values, reference(seed, shape), err_msg=f"{seed=} {shape=}")
        else:  # torch's own kernels differ between processors by this much
            np.testing.assert_allclose(values, reference(seed, shape), rtol=0, atol=4e-6, err_msg=f"{seed=} {shape=}")


def test_a_million_values_are_those_of_torch() -> None:
    difference = np.abs(NormalStream(5).draw((1_000_003,)) - reference(5, (1_000_003,)))
    assert difference.max() <= (0 if HAS_X86_VECTORS else 4e-6)


def test_numpy_integers_are_seeds() -> None:
    np.testing.assert_array_equal(NormalStream(np.int64(7)).draw((20,)), NormalStream(7).draw((20,)))  # type: ignore[arg-type]


def test_a_call_leaves_the_global_random_stream_of_numpy_alone() -> None:
    np.random.seed(3)
    expected = np.random.random_sample(4)
    np.random.seed(3)
    NormalStream(0).draw((100,))
    np.testing.assert_array_equal(np.random.random_sample(4), expected)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seeds_that_torch_refuses_are_refused(seed: int) -> None:
    with pytest.raises(ValueError):
        torch.Generator("cpu").manual_seed(seed)
    with pytest.raises(ValueError, match=f"from {SEED_MIN} to {SEED_MAX}; got {seed}"):
        NormalStream(seed).draw((4,))


@pytest.mark.parametrize("seed", [True, 1.0, "1", None])
def test_a_seed_that_is_no_integer_is_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed must be an integer"):
        NormalStream(seed).draw((4,))


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"negative size; got \(2, -1\)"):
        NormalStream(0).draw((2, -1))


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 4, 3, 4, 6)] * 4,
        [(5, 7)] * 4,
        [(3,)] * 4,
        [(2, 2)] * 4,
        [(3,), (40,), (1,), (), (0,), (5,), (16,), (15,)],  # a small call keeps the second value of a pair for the next
    ],
)
def test_draws_in_a_row_are_those_of_one_generator(shapes: list[tuple[int, ...]]) -> None:
    generator, stream = torch.Generator("cpu").manual_seed(9), NormalStream(9)
    for shape in shapes:
        expected = torch.randn(shape, generator=generator).numpy()
        exact = HAS_X86_VECTORS or expected.size < 16
        np.testing.assert_allclose(stream.draw(shape), expected, rtol=0, atol=0 if exact else 4e-6)
