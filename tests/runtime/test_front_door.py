"""The built-in model through the public API alone: requests, keywords, plans, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import mutoscope
import numpy as np
import pytest
from mutoscope import Pipeline, RequestError, VideoRequest

SMALL = VideoRequest(
    prompt="a red circle moving right on a black background", num_frames=5, num_inference_steps=1, seed=7
)


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with Pipeline.load(backend=("onnxruntime",), threads=1, memory_limit=2_000_000_000, cuda_graphs=False) as pipeline:
        yield pipeline


def test_a_request_and_its_fields_as_keywords_give_the_same_frames(pipeline: Pipeline) -> None:
    by_request = pipeline.generate(SMALL)
    by_keywords = pipeline.generate(**vars(SMALL))
    np.testing.assert_array_equal(by_request.frames, by_keywords.frames)
    other = pipeline.generate(SMALL, seed=8)
    assert other.plan.seed == 8 and not np.array_equal(other.frames, by_request.frames)


def test_a_plan_makes_its_video_again(pipeline: Pipeline) -> None:
    video = pipeline.generate(SMALL, seed=None)
    np.testing.assert_array_equal(pipeline.generate(video.plan.to_request()).frames, video.frames)


def test_videos_are_not_compared_by_their_arrays(pipeline: Pipeline) -> None:
    video = pipeline.generate(SMALL)
    assert video == video and video != pipeline.generate(SMALL)


def test_more_frames_than_fit_into_memory_are_streamed_and_not_collected(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = 5 * 96 * 96 * 3
    monkeypatch.setattr(mutoscope.pipeline, "memory_bytes", lambda: frames - 1)
    with pytest.raises(RequestError, match=r"138\.24 kB of frames.* take them from `stream`"):
        pipeline.generate(SMALL)
    assert sum(chunk.nbytes for chunk in pipeline.stream(SMALL)) == frames


def test_text_where_a_native_value_belongs_says_how_to_write_it() -> None:
    for options, complaint in (
        ({"memory_limit": "8GB"}, r"memory_limit=8_000_000_000"),
        ({"tile": "480x320"}, r"tile=\(480, 320\)"),
        ({"cuda_graphs": "off"}, "cuda_graphs=False"),
        ({"backend": "onnxruntime+openvino"}, r"backend=\('onnxruntime', 'openvino'\)"),
    ):
        with pytest.raises(RequestError, match=complaint):
            Pipeline.load(**options)
