"""A convolution over time with fewer products gives the same; what it cannot take in pairs stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from mutoscope_export.passes.fewer_products_over_time import fewer_products_over_time

from tests.export.passes.test_convolve_over_time import parsed, run


def products(model: ir.Model) -> int:
    """Convolutions of one frame, those of three frames counted as three."""
    return sum(
        node.inputs[0].shape[0] * (3 if node.inputs[0].producer().op_type == "Concat" else 1)
        for node in model.graph
        if node.op_type == "Conv"
    )


@pytest.mark.parametrize("frames", [2, 4, 6])
def test_four_products_do_the_work_of_six(frames: int) -> None:
    model = parsed(frames=frames)
    expected, before = run(model, frames), products(model)
    assert fewer_products_over_time(model)
    inferred = ir.passes.common.ShapeInferencePass()(model).model
    assert (before, products(inferred)) == (3 * frames, 2 * frames)
    np.testing.assert_allclose(run(model, frames), expected, rtol=1e-5, atol=1e-5)


def test_a_weight_of_two_convolutions_gives_its_kernels_once() -> None:
    model = parsed(convolutions="u = CONV v = CONV y = Add(u, v)")
    expected = run(model)
    assert fewer_products_over_time(model)
    assert sum(".product_" in name for name in model.graph.initializers) == 4
    np.testing.assert_allclose(run(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{"frames": 3}, {"first": "c", "last": "a"}])
def test_what_has_no_pairs_of_frames_is_left_alone(changes) -> None:
    assert not fewer_products_over_time(parsed(**changes))
