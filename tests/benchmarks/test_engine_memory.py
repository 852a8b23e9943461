"""The sizes that engines are compiled for. Compiling is the builder's business, and tested there."""

from __future__ import annotations

import pytest

from benchmarks.engine_memory import largest, windows
from benchmarks.real_sizes import MODELS


@pytest.mark.parametrize(
    ("model", "shapes", "sizes"),
    [("5B", "704x1280x121", (31, 44, 80)), ("A14B", "720x1280x81", (21, 90, 160)), ("1.3B", "480x832x1", (1, 60, 104))],
)
def test_the_sizes_of_latents_are_those_of_the_models_vae(model: str, shapes: str, sizes: tuple[int, int, int]) -> None:
    found = largest(MODELS[model], shapes, branches=2)
    assert (found["F"], found["h"], found["w"], found["B"]) == (*sizes, 2)


@pytest.mark.parametrize("shapes", ["720x1280x121", "704x1272x121", "704x1280x120"])
def test_a_size_that_a_model_does_not_make_is_refused(shapes: str) -> None:
    with pytest.raises(
        ValueError, match=f"{shapes} is no size of this model: .* multiples of 32 and 32, .* 4 plus one"
    ):
        largest(MODELS["5B"], shapes, branches=1)


def test_a_tile_is_given_in_pixels_and_found_in_latent_pixels() -> None:
    model = MODELS["5B"]
    found = windows(largest(model, "704x1280x121", 1), ["whole", "704x752"], halo=7, spatial=model.spatial)
    assert {name: (sizes["h"], sizes["w"]) for name, sizes in found.items()} == {
        "whole": (44, 80),
        "2 of 704x752": (44, 47),
    }
