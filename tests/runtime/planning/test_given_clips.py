"""What a clip decides of a request, for models that begin from one, and for those that only see it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest
from mutoscope.bundle.conditionings import VideoConditioning
from mutoscope.bundle.manifest import Frames, Manifest
from mutoscope.clips import read_clip
from mutoscope.errors import RequestError
from mutoscope.planning.given_clips import bytes_of_clips, with_clips_opened
from mutoscope.planning.plan import GeometryPlan
from mutoscope.request import VideoRequest

CLIP = np.zeros((10, 40, 60, 3), np.uint8)
VIDEO = VideoConditioning(name="video", role="vae_encoder_first", following="vae_encoder_next")


def opened(manifest: Manifest, **asked: Any) -> VideoRequest:
    return with_clips_opened(VideoRequest(prompt="a circle", **asked), manifest)


@pytest.fixture
def begins_from_one(make_bundle: Any) -> Manifest:
    manifest: Manifest = make_bundle().manifest
    return msgspec.structs.replace(manifest, conditionings=(*manifest.conditionings, VIDEO))


@pytest.fixture
def only_sees_one(begins_from_one: Manifest, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    monkeypatch.setattr(Manifest, "followed", ("prompt", "video"))
    return begins_from_one


def test_where_a_model_begins_from_a_clip_strength_is_that_of_diffusers(begins_from_one: Manifest) -> None:
    assert opened(begins_from_one, video=CLIP).strength == 0.8
    assert opened(begins_from_one).strength is None


def test_where_a_model_only_sees_a_clip_all_steps_are_made(only_sees_one: Manifest) -> None:
    assert opened(only_sees_one, video=CLIP).strength is None
    with pytest.raises(RequestError, match="strength is not a parameter of this model"):
        opened(only_sees_one, video=CLIP, strength=0.5)


def test_a_picture_beside_a_clip_is_refused(begins_from_one: Manifest) -> None:
    with pytest.raises(RequestError, match="a video is made from video or from image; give one of them"):
        opened(begins_from_one, video=CLIP, image=CLIP[0])


def test_a_clip_shorter_than_any_video_is_refused(begins_from_one: Manifest) -> None:
    long = msgspec.structs.replace(begins_from_one, frames=Frames(first=9, step=4, most=21, frames_per_call=(1, 4)))
    with pytest.raises(RequestError, match="video has 5 frames; a video of this model has 9 at least"):
        opened(long, video=CLIP[:5])


def test_clips_that_host_memory_cannot_hold_are_refused_before_they_are_read() -> None:
    geometry = GeometryPlan(32, 48, 9, 0, Fraction(8), (4, 3, 4, 6), 18)
    clip, one = read_clip(CLIP), 9 * 32 * 48 * 3
    assert bytes_of_clips(VideoRequest(prompt=""), geometry, 0) == 0
    assert bytes_of_clips(VideoRequest(prompt="", video=clip), geometry, one) == one
    with pytest.raises(RequestError, match=r"video, resized to 9 frames of 48x32, would take .* Ask for a"):
        bytes_of_clips(VideoRequest(prompt="", video=clip), geometry, one - 1)
    with pytest.raises(RequestError, match="video and mask, resized"):
        bytes_of_clips(VideoRequest(prompt="", video=clip, mask=clip), geometry, 2 * one - 1)
