"""Sizes and resized pictures, against Diffusers and Transformers, bit for bit."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import transformers
from diffusers.pipelines.wan import pipeline_wan_i2v
from diffusers.video_processor import VideoProcessor
from mutoscope.errors import RequestError
from mutoscope.pictures import fitted, for_clip, sized_for
from PIL import Image

from tests.runtime.clips import scene

# The one that resizes with Pillow; before it had a name of its own, there was no other.
CLIP = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
SHAPES = [(1, 1), (1, 90), (37, 53), (480, 832), (511, 300), (600, 601)]
WAN = {"height": range(16, 16 * 1024 + 1, 16), "width": range(16, 16 * 1024 + 1, 16)}
BUDGET = 480 * 832


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(16, 16), (96, 128), (480, 832)])
def test_a_picture_is_fitted_as_diffusers_does(shape: tuple[int, int], size: tuple[int, int]) -> None:
    given = picture(*shape)
    found = fitted(given, *size)
    assert (found.shape, found.dtype) == ((*size, 3), np.uint8)
    reference = VideoProcessor(vae_scale_factor=8).preprocess(Image.fromarray(given), *size)[0].numpy()
    assert np.array_equal(2 * (found.transpose(2, 0, 1).astype(np.float32) / 255) - 1, reference)


@pytest.mark.parametrize("shape", [*SHAPES, (224, 224), (225, 1000), (3000, 241)])
def test_clip_sees_a_picture_as_in_transformers(shape: tuple[int, int]) -> None:
    given = picture(*shape)
    asked = {"return_tensors": "np", "input_data_format": "channels_last"}  # which of one row is guessed wrongly
    reference = CLIP()(images=Image.fromarray(given), **asked).pixel_values[0]
    found = for_clip(given)
    assert (found.shape, found.dtype) == ((3, 224, 224), np.float32)
    assert np.array_equal(found, reference)


def test_a_picture_that_is_too_narrow_for_clip_is_refused() -> None:
    with pytest.raises(RequestError, match=r"last_image has 2675x1 pixels; .* at most 2674 times the shorter one"):
        for_clip(np.zeros((1, 2675, 3), np.uint8), name="last_image")
    assert for_clip(scene(1)[0]).shape == (3, 224, 224)


def example_of_diffusers(height: int, width: int, multiple: int) -> tuple[int, int]:
    """What the lines that Diffusers shows for this pipeline make of the size of a picture."""
    text = pipeline_wan_i2v.EXAMPLE_DOC_STRING
    lines = re.findall(r">>> ((?:max_area|aspect_ratio|mod_value|height|width) = .*)", text)
    assert len(lines) == 5
    config = SimpleNamespace(patch_size=(1, 2, 2))
    known = {
        "np": np,
        "image": SimpleNamespace(height=height, width=width),
        "pipe": SimpleNamespace(vae_scale_factor_spatial=multiple // 2, transformer=SimpleNamespace(config=config)),
    }
    exec("\n".join(lines), known)
    return known["height"], known["width"]  # type: ignore[return-value]


@pytest.mark.parametrize("multiple", [16, 32])
def test_a_video_has_the_size_that_the_example_of_diffusers_gives_it(multiple: int) -> None:
    sizes = {name: range(multiple, multiple * 1024 + 1, multiple) for name in WAN}
    chance = np.random.default_rng(3)
    for height, width in [(512, 512), (480, 832), (1, 1), *chance.integers(100, 6000, (200, 2)).tolist()]:
        assert sized_for(height, width, BUDGET, sizes) == example_of_diffusers(height, width, multiple)


@pytest.mark.parametrize("shape", [(1, 10_000), (10_000, 1), (3, 4000), (1, 2**20), (9, 16)])
def test_every_aspect_gets_a_size_that_the_model_allows_within_the_budget(shape: tuple[int, int]) -> None:
    for most in (80, 16 * 1024):
        sizes = {"height": range(16, most + 1, 16), "width": range(16, most + 1, 16)}
        height, width = sized_for(*shape, BUDGET, sizes)
        assert height in sizes["height"]
        assert width in sizes["width"]
        assert height * width <= BUDGET
        assert (height <= width) == (shape[0] <= shape[1])
    assert sized_for(*shape, 1, WAN) == (16, 16)
