"""Requests and options: from JSON and back, by keyword, and the names that a type checker knows."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutoscope.errors import RequestError
from mutoscope.request import (
    OutputFields,
    OutputOptions,
    RequestFields,
    RuntimeFields,
    RuntimeOptions,
    VideoRequest,
    make_request,
)
from mutoscope_engines.onnxruntime.cpu import OnnxRuntimeCpu

WHOLE = st.none() | st.integers(-(2**63), 2**63 - 1)
NUMBER = st.none() | st.floats(allow_nan=False, allow_infinity=False)
RATES = st.none() | st.builds(Fraction, st.integers(1, 240)) | st.just(Fraction(24000, 1001)) | st.just(Fraction(25, 2))


@settings(deadline=None)
@given(st.builds(
    VideoRequest, prompt=st.text(), negative_prompt=st.none() | st.text(), height=WHOLE, seed=WHOLE, fps=RATES,
    guidance_scale=NUMBER, sigmas=st.none() | st.lists(st.floats(0, 1)).map(tuple), cache_interval=st.integers(1, 9),
))  # fmt: skip
def test_a_request_comes_back_from_json_as_it_was(request: VideoRequest) -> None:
    assert VideoRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request


def test_options_come_back_from_json_as_they_were() -> None:
    options = RuntimeOptions(
        backend=("onnxruntime", "openvino"), memory_limit=8 * 10**9, tile=(480, 320), cuda_graphs=False, threads=2
    )
    written = {
        "backend": ["onnxruntime", "openvino"], "memory_limit": 8000000000, "tile": [480, 320], "cuda_graphs": False,
        "threads": 2,
    }  # fmt: skip
    assert json.loads(json.dumps(options.to_dict())) == written
    assert RuntimeOptions.from_dict(written) == options


def test_what_was_not_given_is_not_written() -> None:
    assert VideoRequest(prompt="a cat").to_dict() == {"prompt": "a cat"}
    assert RuntimeOptions().to_dict() == {}


def test_a_picture_is_written_as_its_path_and_as_nothing_else() -> None:
    request = VideoRequest(prompt="a cat", image=Path("shots") / "first.png", last_image="last.png")
    written = json.loads(json.dumps(request.to_dict()))
    assert written == {"prompt": "a cat", "image": str(Path("shots/first.png")), "last_image": "last.png"}
    assert VideoRequest.from_dict(written) == replace(request, image=str(request.image))
    for picture, kind in ((b"GIF89a", "bytes"), (np.zeros((1, 1, 3), np.uint8), "ndarray")):
        with pytest.raises(
            RequestError, match=f"last_image can be written as JSON only if it is a path; got {kind}. Save it"
        ):
            VideoRequest(prompt="a cat", last_image=picture).to_dict()


def test_several_pictures_are_a_list_of_paths_and_a_scale_is_one_number_or_several() -> None:
    request = VideoRequest(
        prompt="a cat", video="clip.mp4", mask="mask.png", reference_images=(Path("cat.png"), "hat.png"),
        conditioning_scale=(1.0, 0.5),
    )  # fmt: skip
    written = json.loads(json.dumps(request.to_dict()))
    assert written == {
        "prompt": "a cat", "video": "clip.mp4", "mask": "mask.png", "reference_images": ["cat.png", "hat.png"],
        "conditioning_scale": [1.0, 0.5],
    }  # fmt: skip
    assert VideoRequest.from_dict(written) == replace(request, reference_images=("cat.png", "hat.png"))
    assert VideoRequest.from_dict({"prompt": "a", "conditioning_scale": 0.5}).conditioning_scale == 0.5
    with pytest.raises(RequestError, match="reference_images can be written as JSON only if it is a path; got bytes"):
        replace(request, reference_images=("cat.png", b"GIF89a")).to_dict()


@pytest.mark.parametrize("wrong", [7, [7], ["cat.png", 7], [""], {"cat": "cat.png"}])
def test_what_is_no_list_of_paths_is_refused(wrong: Any) -> None:
    with pytest.raises(RequestError, match="reference_images must be one or more paths of picture files"):
        VideoRequest.from_dict({"prompt": "a cat", "reference_images": wrong})


def test_a_clip_is_written_as_its_path_and_as_nothing_else() -> None:
    request = VideoRequest(prompt="a cat", video=Path("shots") / "clip.mp4", strength=0.5, extend="before.mp4")
    written = json.loads(json.dumps(request.to_dict()))
    expected = {"prompt": "a cat", "video": str(Path("shots/clip.mp4")), "strength": 0.5, "extend": "before.mp4"}
    assert written == expected
    assert VideoRequest.from_dict(written) == replace(request, video=str(request.video))
    with pytest.raises(RequestError, match="video can be written as JSON only if it is a path; got ndarray"):
        VideoRequest(prompt="a cat", video=np.zeros((1, 1, 1, 3), np.uint8)).to_dict()


def test_a_backend_itself_has_no_form_in_json() -> None:
    with pytest.raises(RequestError, match="cannot be written as JSON"):
        RuntimeOptions(backend=OnnxRuntimeCpu()).to_dict()


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"prompt": "a", "hieght": 32}, "there is no parameter 'hieght'; did you mean height?"),
        ({"prompt": "a", "height": "32"}, "height must be a whole number; got '32'"),
        ({"prompt": "a", "height": 32.5}, "height must be a whole number; got 32.5"),
        ({"prompt": "a", "height": True}, "height must be a whole number; got True"),
        ({"prompt": "a", "guidance_scale": "5"}, "guidance_scale must be a number; got '5'"),
        ({"prompt": "a", "sigmas": "1,0.5"}, "sigmas must be a list of numbers; got '1,0.5'"),
        ({"prompt": "a", "fps": "fast"}, "fps must be a number or a ratio from 1 to 240, such as 24, 12.5 or"),
        ({"prompt": "a", "fps": [24]}, "fps must be a number or a ratio from 1 to 240"),
        ({"prompt": None}, "prompt must be text; got None"),
        ({"prompt": "a", "image": ["a"]}, "image must be the path of a picture or video file, such as first.png; got"),
        ({"prompt": "a", "last_image": ""}, "last_image must be the path of a picture or video file"),
        ({"prompt": "a", "video": 7}, "video must be the path of a video file, such as clip.mp4; got 7"),
        ({"prompt": "a", "strength": "much"}, "strength must be a number; got 'much'"),
        ({"prompt": "a", "scheduler": "unipcc"}, "there is no scheduler 'unipcc'; did you mean unipc?"),
        ({}, "prompt is missing"),
        (["a"], "the parameters of a VideoRequest must be an object; got list"),
    ],
)
def test_json_that_is_no_request_is_refused_with_what_is_wrong(values: Any, complaint: str) -> None:
    with pytest.raises(RequestError) as refusal:
        VideoRequest.from_dict(values)
    assert complaint in str(refusal.value)


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(RequestError) as refusal:
        VideoRequest.from_dict({"hieght": 32, "width": "48", "seed": [], "fps": 24})
    said = str(refusal.value)
    assert all(name in said for name in ("'hieght'", "width must be", "seed must be", "prompt is missing"))
    assert "fps" not in said.replace("fps, scheduler", "")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"memory_limit": "8GB"}, "memory_limit must be a whole number; got '8GB'"),
        ({"tile": [480]}, "tile must be a list of two whole numbers; got [480]"),
        ({"cuda_graphs": "on"}, "cuda_graphs must be true or false; got 'on'"),
        ({"backend": ["onnxruntim"]}, "there is no backend 'onnxruntim'; did you mean onnxruntime?"),
    ],
)
def test_json_that_is_no_options_is_refused(values: Any, complaint: str) -> None:
    with pytest.raises(RequestError) as refusal:
        RuntimeOptions.from_dict(values)
    assert str(refusal.value).startswith(complaint)


def test_keywords_take_the_place_of_what_a_request_says() -> None:
    request = VideoRequest(prompt="a cat", seed=1, height=32)
    assert make_request(request, {"seed": 2}) == VideoRequest(prompt="a cat", seed=2, height=32)
    assert request.seed == 1
    assert make_request("a cat", {"seed": 2}) == make_request(None, {"prompt": "a cat", "seed": 2})


def test_a_prompt_is_given_once() -> None:
    with pytest.raises(RequestError, match="given twice"):
        make_request("a cat", {"prompt": "a dog"})
    with pytest.raises(RequestError, match="the prompt is missing"):
        make_request(None, {"seed": 2})


@pytest.mark.parametrize(
    ("record", "keywords"),
    [(VideoRequest, RequestFields), (RuntimeOptions, RuntimeFields), (OutputOptions, OutputFields)],
)
def test_the_keywords_that_a_type_checker_knows_are_the_fields(record: Any, keywords: Any) -> None:
    hints = get_type_hints(record)
    assert get_type_hints(keywords) == {field.name: hints[field.name] for field in fields(record)}
