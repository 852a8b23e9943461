"""Pictures at both ends of a clip reach the encoder call by call, grey between them, and caches pass through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.conditionings import ImageConditioning
from mutoscope.errors import BundleError, RequestError
from mutoscope.pipeline import EncodedConditions, Pipeline
from mutoscope.request import RuntimeOptions
from mutoscope_engines.session import Tensor
from mutoscope_engines.testing import FakeBackend
from PIL import Image

from tests.bundles import Ends, graphs, interfaces, tensors
from tests.runtime.conditions.encoding import counting, encoder_ends

MakeBundle = Callable[..., Bundle]
FIRST, LAST = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), np.uint8)
SIZED: dict[str, Any] = {"prompt": "a red circle", "height": 32, "width": 48, "num_frames": 9}
CLIP: dict[str, Any] = {
    "name": "image", "role": "vae_encoder_first", "following": "vae_encoder_next", "last": "last_image",
    "feeds": {"condition": "seen"}, "given": "given",
}  # fmt: skip


def ends_with_clip(cache: tuple[Any, ...] = (1, 2, "h", "w")) -> dict[str, Ends]:
    """Graphs of a bundle whose denoiser is given a latent for each of its own, and an encoder with one cache."""
    ends = interfaces()
    inputs, outputs = ends["denoiser"]
    ends["denoiser"] = (inputs + tensors(seen=(4, "F", "h", "w"), given=(4, "F")), outputs)
    return ends | encoder_ends(cache)


@pytest.fixture
def with_clip(make_bundle: MakeBundle) -> MakeBundle:
    """A bundle that takes a picture at each end; keywords change what its manifest says of them."""

    def make(ends: dict[str, Ends] | None = None, **changes: Any) -> Bundle:
        texts = make_bundle().manifest.texts
        image = ImageConditioning(**(CLIP | changes))
        return make_bundle(conditionings=(*texts, image), graphs=graphs(ends or ends_with_clip()))

    return make


def resized(picture: Any) -> Any:
    return np.asarray(Image.fromarray(picture).resize((48, 32), Image.Resampling.LANCZOS))


def fed(backend: FakeBackend, graph: str) -> list[dict[str, Any]]:
    return [feeds for name, feeds in backend.fed if name == graph]


@pytest.mark.parametrize("ends", [False, True])
def test_the_encoder_sees_the_pictures_at_the_ends_of_a_grey_clip_a_call_at_a_time(
    with_clip: MakeBundle, ends: bool
) -> None:
    backend = counting()
    with Pipeline(with_clip(), RuntimeOptions(backend=backend)) as pipeline:
        plan = pipeline.generate(**SIZED, image=FIRST, last_image=LAST if ends else None).plan
    clip = np.full((9, 32, 48, 3), 127.5, np.float32)
    clip[0] = resized(FIRST)
    if ends:
        clip[8] = resized(LAST)
    first, *following = fed(backend, "vae_encoder_first") + fed(backend, "vae_encoder_next")
    np.testing.assert_array_equal(first["frames"], clip[:1])
    for number, feeds in enumerate(following):
        np.testing.assert_array_equal(feeds["frames"], clip[1 + 4 * number : 5 + 4 * number])
        assert (feeds["cache_0"] == 1 + number).all()
    assert len(following) == 2
    # As WanImageToVideoPipeline has it: all frames of the first latent, of the last one only the last.
    given = [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, int(ends)]]
    means = [clip[:1].mean(), clip[1:5].mean(), clip[5:].mean()]
    for feeds in fed(backend, "denoiser"):
        assert feeds["given"].tolist() == given
        np.testing.assert_allclose(feeds["seen"][:, :, 1, 1], [means] * 4, rtol=1e-6)
    assert ("last_image" in plan.conditions.facts) == ends
    assert plan.to_request(image=FIRST, **({"last_image": LAST} if ends else {})).num_frames == 9


def test_a_single_frame_is_one_call_and_has_no_end(with_clip: MakeBundle) -> None:
    backend = counting()
    with Pipeline(with_clip(), RuntimeOptions(backend=backend)) as pipeline:
        pipeline.generate(**SIZED | {"num_frames": 1}, image=FIRST)
        with pytest.raises(RequestError, match="a video of one frame has no end for last_image"):
            pipeline.plan(**SIZED | {"num_frames": 1}, image=FIRST, last_image=LAST)
    assert fed(backend, "denoiser")[0]["given"].tolist() == [[1]] * 4
    assert ("open", "vae_encoder_next") not in backend.log


def test_another_last_picture_is_another_condition(with_clip: MakeBundle) -> None:
    backend, kept = counting(), EncodedConditions()
    with Pipeline(with_clip(), RuntimeOptions(backend=backend)) as pipeline:
        for last in (LAST, LAST, 255 - LAST, None):
            for _ in pipeline.stream(**SIZED, image=FIRST, last_image=last, encoded=kept):
                pass
    assert backend.log.count(("run", "vae_encoder_first")) == 3


@pytest.mark.parametrize(
    ("asked", "changes", "message"),
    [
        ({}, {}, "image is missing: this model makes a video from a picture"),
        ({"image": FIRST}, {"last_required": True}, "last_image is missing: this model makes a video between two"),
        (
            {"last_image": LAST},
            {"required": False},
            "image is missing: last_image is only for videos that begin",
        ),
    ],
)
def test_a_missing_picture_is_asked_for(
    with_clip: MakeBundle, asked: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    backend = RuntimeOptions(backend=counting())
    with Pipeline(with_clip(**changes), backend) as pipeline, pytest.raises(RequestError, match=message):
        pipeline.plan(**SIZED, **asked)


def test_without_pictures_that_may_be_left_out_the_denoiser_gets_zeros_of_every_latent(with_clip: MakeBundle) -> None:
    backend = counting()
    with Pipeline(with_clip(required=False), RuntimeOptions(backend=backend)) as pipeline:
        pipeline.generate(**SIZED)
    feeds = fed(backend, "denoiser")[0]
    assert (feeds["seen"].shape, feeds["given"].shape) == ((4, 3, 4, 6), (4, 3))
    assert not feeds["seen"].any() and not feeds["given"].any()


def test_both_graphs_of_the_encoder_count_as_open_at_once_with_their_caches(with_clip: MakeBundle) -> None:
    backend = counting()
    backend.memory = 150_000  # bytes: each stage fits, and not all of them
    with Pipeline(with_clip(), RuntimeOptions(backend=backend)) as pipeline:
        plan = pipeline.generate(**SIZED, image=FIRST).plan
    assert list(plan.memory.options) == ["text_encoder", "vae_encoder", "denoise", "decode"]
    frame, latent, cache = 4 * 32 * 48 * 3, 4 * 4 * 4 * 6, 4 * 2 * 4 * 6
    assert plan.option_of("vae_encoder_next").buffer_bytes == 5 * frame + 2 * latent + 3 * cache
    events = [entry for entry in backend.log if entry[1].startswith("vae_encoder")]
    assert events == [
        ("open", "vae_encoder_first"), ("run", "vae_encoder_first"), ("open", "vae_encoder_next"),
        ("run", "vae_encoder_next"), ("close", "vae_encoder_first"), ("run", "vae_encoder_next"),
        ("close", "vae_encoder_next"),
    ]  # fmt: skip
    assert backend.open_sessions == backend.open_bindings == 0


def test_an_encoder_that_fails_leaves_nothing_open(with_clip: MakeBundle) -> None:
    backend = counting()

    def failing(**_: Any) -> dict[str, Tensor]:
        raise ZeroDivisionError

    backend.graphs["vae_encoder_next"] = failing
    with Pipeline(with_clip(), RuntimeOptions(backend=backend)) as pipeline:
        with pytest.raises(ZeroDivisionError):
            pipeline.generate(**SIZED, image=FIRST)
        assert backend.open_bindings == 0


def test_an_encoder_whose_calls_do_not_fit_together_is_refused(with_clip: MakeBundle) -> None:
    with pytest.raises(BundleError, match="the caches that the vae_encoder_first in fp32 gives differ"):
        with_clip(ends_with_clip(cache=(2, 2, "h", "w")))
    with pytest.raises(BundleError, match=r"the denoiser in fp32 has the input seen as float32 \[4, F, h, w\]"):
        with_clip(following=None, last=None)
