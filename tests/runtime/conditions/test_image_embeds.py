"""Pictures as CLIP sees them reach their encoder together, beside the frames that the same pictures are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.conditionings import ImageConditioning, ImageEmbedsConditioning
from mutoscope.errors import BundleError, RequestError
from mutoscope.pictures import for_clip
from mutoscope.pipeline import Pipeline
from mutoscope.request import RuntimeOptions
from mutoscope_engines.testing import FakeBackend

from tests.bundles import graphs, tensors
from tests.runtime.conditions.encoding import counting
from tests.runtime.conditions.test_image_clip import CLIP, FIRST, LAST, SIZED, ends_with_clip

MakeBundle = Callable[..., Bundle]
EMBEDS: dict[str, Any] = {
    "name": "image", "last": "last_image", "role": "image_encoder", "feeds": {"image_embeds": "looks"},
}  # fmt: skip


@pytest.fixture
def looking(make_bundle: MakeBundle) -> MakeBundle:
    """A bundle that shows CLIP both pictures, 5 tokens of each; keywords change what its manifest says of that."""

    def make(tokens: int = 10, **changes: Any) -> Bundle:
        ends = ends_with_clip()
        inputs, outputs = ends["denoiser"]
        ends["denoiser"] = (inputs + tensors(looks=(10, 3)), outputs)
        ends["image_encoder"] = tensors(pixels=(2, 3, 224, 224)), tensors(image_embeds=(tokens, 3))
        clip = ImageConditioning(**CLIP, last_required=True)
        embeds = ImageEmbedsConditioning(**(EMBEDS | changes))
        texts = make_bundle().manifest.texts
        return make_bundle(conditionings=(*texts, clip, embeds), graphs=graphs(ends))

    return make


def test_clip_is_shown_both_pictures_at_its_own_size_and_the_denoiser_gets_the_tokens(looking: MakeBundle) -> None:
    tokens = np.arange(30, dtype=np.float32).reshape(10, 3)
    backend = counting()
    backend.graphs["image_encoder"] = lambda pixels: {"image_embeds": tokens}
    with Pipeline(looking(), RuntimeOptions(backend=backend)) as pipeline:
        plan = pipeline.generate(**SIZED, image=FIRST, last_image=LAST).plan
    fed = dict(backend.fed)  # of the last call of each graph
    np.testing.assert_array_equal(fed["image_encoder"]["pixels"], [for_clip(FIRST), for_clip(LAST)])
    np.testing.assert_array_equal(fed["denoiser"]["looks"], tokens)
    assert fed["denoiser"]["seen"].shape == (4, 3, 4, 6)
    assert "image_encoder" in plan.memory.options


def test_a_missing_picture_is_asked_for(looking: MakeBundle) -> None:
    with Pipeline(looking(), RuntimeOptions(backend=FakeBackend())) as pipeline:
        for given, missing in (({}, "image"), ({"image": FIRST}, "last_image")):
            with pytest.raises(RequestError, match=f"^{missing} is missing: this model makes a video"):
                pipeline.plan(**SIZED, **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "vae_encoder_first"}, "image has the encoder 'vae_encoder_first'; use one of image_encoder"),
        ({"feeds": {"pixels": "looks"}}, "image feeds pixels, which the image_encoder does not give"),
        ({"feeds": {"image_embeds": "seen"}}, "more than one conditioning or draw feeds the denoiser's input seen"),
        ({"feeds": {"image_embeds": "sees"}}, "the graph of the denoiser in fp32 has no input sees"),
        ({"tokens": 5}, r"image_encoder and the denoiser have looks in the shapes \[10, 3\] and \[5, 3\]"),
        ({"last": "ending"}, "the bundle needs the parameter 'ending'"),
    ],
)
def test_a_manifest_whose_pictures_cannot_be_looked_at_is_refused(
    looking: MakeBundle, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        Pipeline(looking(**change), RuntimeOptions(backend=FakeBackend()))
