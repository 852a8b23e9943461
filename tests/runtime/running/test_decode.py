"""A decoder that takes two latent frames a call, from the first on, and gives eight frames; on the fake backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mutoscope.bundle.bundle import Bundle
from mutoscope.errors import RequestError, ShapeError
from mutoscope_engines.testing import FakeBackend

from tests.bundles import graphs, interfaces, tensors
from tests.runtime.running.functions import PROMPT, decoders, latents_of, vae_features_first, vae_features_next

VIDEO = {"height": 64, "width": 96, "num_frames": 24}  # 6 latent frames of 8 x 12


@pytest.fixture
def in_pairs(make_bundle: Callable[..., Bundle], backend: FakeBackend) -> Bundle:
    backend.graphs |= decoders(8, 8)
    ends = interfaces(feature_channels=8)
    latents, frames = tensors(latents=(1, 4, 2, "h", "w")), tensors(frames=(8, "8*h", "8*w", 3))
    for role in ("vae_features_first", "vae_features_next"):
        (_, *caches), outputs = ends[role]
        ends[role] = (*latents, *caches), outputs
    for role in ("vae_decoder_first", "vae_decoder_next"):
        inputs, (_, *caches) = ends[role]
        ends[role] = inputs, (*frames, *caches)
    lengths = {"first": 8, "step": 8, "most": 48, "frames_per_call": (8, 8), "latents_per_call": (2, 2)}
    return make_bundle(frames=lengths, graphs=graphs(ends), defaults={"num_frames": 16})


def decoded(latents: Any) -> Any:
    """Pair after pair, whole: latents [C, F, h, w] to frames u8 [T, H, W, 3]."""
    first, following = decoders(8, 8).values()
    made = vae_features_first(latents[None, :, :2])
    shown = first(made["features"])
    frames = [shown["frames"]]
    for start in range(2, latents.shape[1], 2):
        made = vae_features_next(latents[None, :, start : start + 2], made.get("next_cache_0", made.get("cache_0")))
        shown = following(made["features"], *list(shown.values())[1:])
        frames.append(shown["frames"])
    return np.concatenate(frames)


def test_each_call_takes_two_latent_frames_and_the_video_has_all_frames(
    backend: FakeBackend, load: Any, in_pairs: Bundle
) -> None:
    with load(in_pairs) as pipeline:
        video = pipeline.generate(PROMPT, seed=3, **VIDEO)
    assert video.frames.shape == (24, 64, 96, 3)
    taken = [(role, feeds["latents"].shape) for role, feeds in backend.fed if role.startswith("vae_features")]
    pair = (1, 4, 2, 8, 12)
    assert taken == [("vae_features_first", pair), ("vae_features_next", pair), ("vae_features_next", pair)]
    frames = decoded(latents_of(backend.fed))
    assert len(np.unique(frames)) > 50  # no constant picture
    np.testing.assert_array_equal(video.frames, frames)


def test_in_tiles_the_frames_are_those_of_the_whole(backend: FakeBackend, load: Any, in_pairs: Bundle) -> None:
    with load(in_pairs) as pipeline:
        whole = pipeline.generate(PROMPT, seed=3, **VIDEO).frames
    backend.log.clear()
    with load(in_pairs, tile=(48, 56)) as pipeline:
        tiled = pipeline.generate(PROMPT, seed=3, **VIDEO)
    assert tiled.plan.decoder_tiles == 4
    assert [backend.log.count(("run", f"vae_decoder_{call}")) for call in ("first", "next")] == [4, 4 * 2]
    np.testing.assert_array_equal(tiled.frames, whole)


@pytest.mark.parametrize(("following", "said"), [(9, "more"), (7, "22")])
def test_in_tiles_too_many_or_too_few_frames_are_refused_as_in_the_whole(
    backend: FakeBackend, load: Any, in_pairs: Bundle, following: int, said: str
) -> None:
    backend.graphs |= decoders(8, following)
    backend.checks_outputs = False
    for tile in (None, (48, 56)):
        with load(in_pairs, tile=tile) as pipeline, pytest.raises(ShapeError, match=f"24 frames; there are {said}"):
            pipeline.generate(PROMPT, **VIDEO)


def test_the_host_holds_the_features_and_frames_of_every_call(load: Any, in_pairs: Bundle) -> None:
    with load(in_pairs, tile=(48, 56)) as pipeline:
        plan = pipeline.plan(PROMPT, **VIDEO)
    features, frames = 3 * (8 * 8 * 12) * 4, 24 * 64 * 96 * 3
    assert plan.memory.options["decode"].host_bytes == features + frames


def test_the_shortest_video_calls_only_the_first_graphs(backend: FakeBackend, load: Any, in_pairs: Bundle) -> None:
    with load(in_pairs) as pipeline:
        frames = pipeline.generate(PROMPT, seed=3, num_frames=8).frames
    assert [name for event, name in backend.log if event == "open" and name.startswith("vae")] == [
        "vae_features_first",
        "vae_decoder_first",
    ]
    np.testing.assert_array_equal(frames, decoded(latents_of(backend.fed)))


@pytest.mark.parametrize(
    ("num_frames", "said"),
    [
        (12, "num_frames must be a multiple of 8; got 12; nearest: 8, 16"),
        (1, "nearest: 8, 16"),
        (47, "nearest: 40, 48"),
        (49, "from 1 to 48; got 49"),
    ],
)
def test_a_length_that_is_no_whole_number_of_calls_is_refused(
    load: Any, in_pairs: Bundle, num_frames: int, said: str
) -> None:
    with load(in_pairs) as pipeline, pytest.raises(RequestError) as refusal:
        pipeline.plan(PROMPT, num_frames=num_frames)
    assert said in str(refusal.value)
