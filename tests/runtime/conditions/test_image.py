"""A picture reaches the encoder in the size of the video; without one, the denoiser gets zeros and no encoder runs."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.conditionings import ImageConditioning
from mutoscope.bundle.manifest import GraphTensor
from mutoscope.errors import BundleError, RequestError
from mutoscope.pipeline import EncodedConditions, Pipeline
from mutoscope.planning.plan import Plan
from mutoscope.request import RuntimeOptions, VideoRequest
from mutoscope_engines.testing import FakeBackend
from PIL import Image

from tests.bundles import Ends, graphs, interfaces, tensors

MakeBundle = Callable[..., Bundle]
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)  # as wide for its height as the video
CONDITION = np.linspace(-1, 1, 4 * 4 * 6, dtype=np.float32).reshape(4, 1, 4, 6)
SIZED: dict[str, Any] = {"prompt": "a red circle", "height": 32, "width": 48}
FIRST_FRAME = {"name": "image", "role": "vae_encoder_first", "feeds": {"condition": "seen"}, "given": "given"}


def ends_with_picture() -> dict[str, Ends]:
    """Graphs of a bundle whose denoiser is also given a latent frame, and an encoder that makes it."""
    ends = interfaces()
    inputs, outputs = ends["denoiser"]
    frames = GraphTensor(name="frames", dtype="float32", shape=(1, "8*h", "8*w", 3))
    ends["denoiser"] = (inputs + tensors(seen=(4, 1, "h", "w"), given=("F",)), outputs)
    return ends | {"vae_encoder_first": ((frames,), tensors(condition=(4, 1, "h", "w")))}


@pytest.fixture
def with_picture(make_bundle: MakeBundle) -> MakeBundle:
    """A bundle that may be given a picture; keywords change what its manifest says of it."""

    def make(**changes: Any) -> Bundle:
        image = ImageConditioning(**(FIRST_FRAME | {"required": False} | changes))
        texts = make_bundle().manifest.texts
        return make_bundle(conditionings=(*texts, image), graphs=graphs(ends_with_picture()))

    return make


def zeros_but(graph: str, values: dict[str, Any]) -> FakeBackend:
    """A backend whose graphs give zeros, except for one of them."""
    backend = FakeBackend({graph: lambda **_: values})
    backend.gives_zeros = True
    return backend


def fed(bundle: Bundle, **asked: Any) -> tuple[dict[str, list[dict[str, Any]]], Plan]:
    """What each graph was fed for a video, call by call, and the plan."""
    backend = zeros_but("vae_encoder_first", {"condition": CONDITION})
    with Pipeline(bundle, RuntimeOptions(backend=backend)) as pipeline:
        plan = pipeline.generate(VideoRequest(**SIZED | asked)).plan
    given: dict[str, list[dict[str, Any]]] = {}
    for graph, feeds in backend.fed:
        given.setdefault(graph, []).append(feeds)
    return given, plan


def test_a_picture_is_resized_as_pil_does_and_its_latent_is_the_first_frame(with_picture: MakeBundle) -> None:
    given, plan = fed(with_picture(), image=PICTURE)
    (frames,) = (feeds["frames"] for feeds in given["vae_encoder_first"])
    resized = np.asarray(Image.fromarray(PICTURE).resize((48, 32), Image.Resampling.LANCZOS))
    assert frames.dtype == np.float32
    np.testing.assert_array_equal(frames, resized[None])
    for feeds in given["denoiser"]:
        np.testing.assert_array_equal(feeds["seen"], CONDITION)
        assert feeds["given"].tolist() == [1, 0, 0]
    assert Plan.from_dict(plan.to_dict()) == plan


def test_without_a_picture_the_denoiser_gets_zeros_and_no_encoder_is_opened(with_picture: MakeBundle) -> None:
    given, plan = fed(with_picture())
    assert "vae_encoder_first" not in given
    assert not given["denoiser"][0]["seen"].any() and given["denoiser"][0]["seen"].shape == (4, 1, 4, 6)
    assert given["denoiser"][0]["given"].tolist() == [0, 0, 0]
    assert "image" not in plan.conditions.facts


def test_the_plan_says_which_pixels_a_picture_had_and_not_where_it_lay(
    with_picture: MakeBundle, tmp_path: Path
) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "first.png")
    bundle = with_picture()
    plans = [fed(bundle, image=image, seed=1)[1] for image in (tmp_path / "first.png", PICTURE)]
    said = [plan.conditions.facts["image"] for plan in plans]
    assert said[0] == said[1] and str(said[0]).startswith("60x40 sha256:")
    assert str(tmp_path) not in plans[0].header.recipe
    assert plans[0].to_request(image=PICTURE).image is PICTURE


def test_the_same_picture_is_encoded_once_and_another_or_none_is_told_apart(with_picture: MakeBundle) -> None:
    backend, kept = zeros_but("vae_encoder_first", {"condition": CONDITION}), EncodedConditions()
    small = SIZED | {"image": PICTURE}
    with Pipeline(with_picture(), RuntimeOptions(backend=backend)) as pipeline:
        for request in (small, small, small | {"image": 255 - PICTURE}, small | {"image": None}):
            for _ in pipeline.stream(**request, encoded=kept):
                pass
        one_frame = pipeline.stream(**SIZED, num_frames=1, encoded=kept)
        assert sum(len(chunk) for chunk in one_frame) == 1  # with zeros of its own size
    assert backend.log.count(("run", "vae_encoder_first")) == 2


def test_what_was_read_is_told_and_what_cannot_be_is_refused_by_name(with_picture: MakeBundle) -> None:
    transparent = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 100)).save(transparent, "PNG")
    bundle = with_picture()
    assert "image is transparent in parts" in " ".join(
        fed(bundle, image=transparent.getvalue(), height=32, width=48)[1].notes
    )
    with pytest.raises(RequestError, match="image is not there"):
        fed(bundle, image="no such file.png")


def test_a_picture_that_no_request_has_is_refused(with_picture: MakeBundle) -> None:
    with pytest.raises(BundleError, match="follows 'seed' as a picture; a request has the pictures image, last_image"):
        fed(with_picture(name="seed"))


def test_a_model_that_needs_a_picture_says_so_and_one_that_takes_none_refuses_it(
    make_bundle: MakeBundle, with_picture: MakeBundle
) -> None:
    with pytest.raises(RequestError, match="image is missing: this model makes a video from a picture"):
        fed(with_picture(required=True))
    with pytest.raises(RequestError, match="image is not a parameter of this model, which takes: prompt"):
        fed(make_bundle(), image=PICTURE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"role": "text_encoder"},
            "image has the encoder 'text_encoder' for its first call; use one of",
        ),
        ({"role": "eye"}, "image has the encoder 'eye' for its first call; use one of vae_encoder_first"),
        ({"feeds": {"pixels": "seen"}}, "image feeds pixels, which the vae_encoder_first does not give"),
        ({"given": "state"}, "feeds the denoiser's input state, which only the steps may feed"),
        ({"given": "seen"}, "more than one conditioning or draw feeds the denoiser's input seen"),
        ({"given": "shown"}, "the graph of the denoiser in fp32 has no input shown"),
        ({"role": "vae_encoder_next"}, "'vae_encoder_next' for its first call; use one of vae_encoder_first"),
        ({"following": "vae_encoder_next"}, "no graph has the role vae_encoder_next"),
        ({"last": "last_image"}, "image has the last frame 'last_image', and no encoder for its other calls"),
        ({"last": "ending", "following": "vae_encoder_first"}, "for its other calls; use one of vae_encoder_next"),
    ],
)
def test_a_manifest_whose_picture_cannot_be_encoded_or_fed_is_refused(
    with_picture: MakeBundle, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        with_picture(**change)
