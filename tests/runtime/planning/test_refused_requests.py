"""A request that cannot be served is refused with the nearest that can."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mutoscope.errors import RequestError


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"height": 721}, "height must be a multiple of 16; got 721; nearest: 720, 736"),
        ({"width": 5}, "width must be a multiple of 16; got 5; nearest: 16"),
        ({"height": 1023}, "nearest: 1008, 1024"),
        ({"height": 1025}, "height must be a whole number from 1 to 1024; got 1025"),
        ({"num_frames": 18}, "num_frames must be 1 more than a multiple of 4; got 18; nearest: 17, 21"),
        ({"num_frames": 2}, "nearest: 1, 5"),
        ({"num_frames": 254}, "num_frames must be a whole number from 1 to 253; got 254"),
        ({"num_frames": 0}, "whole number from 1 to 253; got 0"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number from 1 to 1000; got 0"),
        (
            {"fps": 1000},
            "fps must be a number or a Fraction from 1 to 240, such as fps=Fraction(24000, 1001); got 1000",
        ),
        ({"fps": "12.5"}, "such as fps=Fraction(25, 2); got '12.5'"),
        ({"fps": True}, "fps must be a number or a Fraction from 1 to 240"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a number from 0 to 1000; got nan"),
        ({"guidance_scale": -1}, "got -1"),
        ({"guidance_scale": 10**400}, "guidance_scale must be a number from 0 to 1000"),
        ({"flow_shift": 0}, "flow_shift must be a number from 0.001 to 1000; got 0"),
        ({"flow_shift": float("inf")}, "got inf"),
        ({"scheduler": "ddim"}, "'ddim'; supported: unipc, euler, dpmpp_2m"),
        ({"scheduler": ["unipc"]}, "supported: unipc, euler, dpmpp_2m"),
        ({"seed": 2**64}, "seed must be a whole number from -9223372036854775808 to 18446744073709551615"),
        ({"max_sequence_length": 25}, "max_sequence_length must be a whole number from 1 to 24; got 25"),
        (
            {"image": "first.png"},
            "image is not a parameter of this model, which takes: prompt, negative_prompt. Leave it out; export a "
            "model that takes one, such as Wan 2.2 TI2V-5B",
        ),
        ({"last_image": np.zeros((2, 2, 3), np.uint8)}, "last_image is not a parameter of this model"),
        ({"negative_prompt": ["a"]}, "negative_prompt must be one string; got list"),
        ({"precision": "int8"}, "there is no precision 'int8' in the bundle. There are: fp32"),
        ({"threads": 0}, "threads must be a whole number from 1 to "),
        ({"memory_limit": "7.5GiB"}, "memory_limit must be a number of bytes, such as memory_limit=8_053_063_680; got"),
        ({"memory_limit": "much"}, "such as memory_limit=8_000_000_000; got 'much'"),
        ({"memory_limit": 0}, "memory_limit must be a number of bytes"),
        ({"tile": "480x320"}, "tile must be (height, width) in pixels, such as tile=(480, 320); got '480x320'"),
        ({"tile": 480}, "tile must be (height, width) in pixels, such as tile=(480, 480); got 480"),
        ({"tile": (16, 24)}, "tile=(16, 24) must be multiples of 8 and at least 24"),
        ({"cuda_graphs": "off"}, "cuda_graphs must be True or False, such as cuda_graphs=False; got 'off'"),
        (
            {"backend": "onnxruntime+openvino"},
            "backend must be a name or a tuple of names, such as backend=('onnxruntime', 'openvino'); got",
        ),
        ({"backend": ()}, "backend must be a name or a tuple of names"),
        ({"branches_per_call": 3}, "branches_per_call must be a whole number from 1 to 2; got 3"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(job, asked: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError) as refusal:
        job(**asked)
    assert complaint in str(refusal.value)
    assert refusal.value.exit_code == 2


WHOLE = ("height", "num_frames", "num_inference_steps", "seed", "max_sequence_length", "threads")


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [True, 16.0, "16", np.True_, [16], b"16"])
def test_a_whole_number_is_nothing_else(job, name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{name} must be a whole number"):
        job(**{name: value})


@pytest.mark.parametrize("name", ["guidance_scale", "flow_shift"])
@pytest.mark.parametrize("value", [True, "5", b"5", 5j, [5.0], np.True_])
def test_a_number_is_nothing_else(job, name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{name} must be a number"):
        job(**{name: value})


@pytest.mark.parametrize(("num_frames", "nearest"), [(1, "5, 13"), (9, "5, 13"), (17, "13, 21")])
def test_patches_of_two_latent_frames_ask_for_an_even_number_of_them(job, num_frames: int, nearest: str) -> None:
    frames = {"first": 5, "step": 8, "most": 501}
    bundle = {"geometry": {"patch_size": (2, 2, 2)}, "frames": frames, "defaults": {"num_frames": 13}}
    with pytest.raises(RequestError, match=f"5 more than a multiple of 8; got {num_frames}; nearest: {nearest}"):
        job(num_frames=num_frames, bundle=bundle)
    for allowed in nearest.split(", "):
        assert job(num_frames=int(allowed), bundle=bundle).plan.geometry.latents_shape[1] % 2 == 0


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t", "&nbsp;"])
def test_a_prompt_that_says_nothing_is_refused(job, prompt: str) -> None:
    with pytest.raises(RequestError, match="the prompt is empty"):
        job(prompt)


@pytest.mark.parametrize("prompt", [None, 7, b"a red circle", ["a red circle", "a green circle"]])
def test_a_prompt_is_one_string(job, prompt: Any) -> None:
    with pytest.raises(RequestError, match="prompt must be one string"):
        job(prompt)


def test_a_prompt_that_is_too_long_is_refused_with_its_length_and_the_limit(job) -> None:
    with pytest.raises(RequestError, match=r"^prompt has \d{3} tokens.*at most 24 fit.*'a red circle a red"):
        job("a red circle " * 40)
    with pytest.raises(RequestError, match=r"^negative_prompt has \d{3} tokens"):
        job(negative_prompt="a red circle " * 40, guidance_scale=2.0)


def test_a_prompt_with_bytes_that_are_no_utf8_is_refused_and_a_whole_pair_is_mended(job) -> None:
    for name in ("prompt", "negative_prompt"):
        text = b"a caf\xe9".decode("utf-8", "surrogateescape")  # as the shell's arguments come in
        with pytest.raises(RequestError, match=f"^{name} is not valid Unicode at character 6: .*UTF-8"):
            job(**{name: text})
    assert job("a red \ud83d\udd34").plan.conditions.prompt == "a red \U0001f534"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"sigmas": "1,0.5"}, r"sigmas must be a sequence of numbers, such as sigmas=\(1\.0, 0\.5\); got '1,0\.5'"),
        ({"sigmas": 3}, "sigmas must be a sequence of numbers"),
        ({"sigmas": ""}, "sigmas must be a sequence of numbers"),
        ({"sigmas": (1, 0.5), "num_inference_steps": 3}, "there are 2 sigmas for 3 steps; give one for each step"),
        ({"sigmas": (0.5, 1)}, r"sigmas must fall from at most 1 to above 0; got 0\.5, 1"),
        ({"sigmas": (1, 0.5), "scheduler": "dpmpp_2m"}, "dpmpp_2m takes no sigmas"),
        ({"scheduler": "lcm", "num_inference_steps": 9}, "ask for at most 8 steps"),
        ({"cache_interval": 0}, "cache_interval must be a whole number from 1 to 1000; got 0"),
        ({"scheduler": "lcm", "num_inference_steps": 8, "cache_interval": 2}, "cache_interval must be 1 with lcm"),
    ],
)
def test_steps_that_cannot_be_are_refused(job, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        job(**asked)
