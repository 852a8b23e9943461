"""The picture that a case draws, and clips that begin with it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from mutoscope import Pipeline
from mutoscope.builtin import bundle_path
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.conditionings import ImageConditioning
from mutoscope.bundle.manifest import Manifest
from mutoscope_bench.cases import PROMPT, SEED
from mutoscope_bench.options import Options
from mutoscope_bench.picture import RED, red_circle, with_picture
from mutoscope_bench.run import run
from PIL import Image

REQUEST = {"height": 32, "width": 32, "guidance_scale": 1.0}
OURS = "mutoscope onnxruntime"


def test_the_picture_is_a_red_circle_in_the_left_half() -> None:
    picture = red_circle(48, 96)
    assert picture.shape == (48, 96, 3) and picture.dtype == np.uint8
    reds = (picture == RED).all(axis=-1)
    assert reds.sum() == pytest.approx(np.pi * 8**2, rel=0.15)
    assert not picture[:, 48:].any() and not picture[0].any()
    assert (picture[::-1] == picture).all()


def manifest_with(**changes: object) -> Manifest:
    """The built-in bundle's manifest, whose picture is another one."""
    manifest = Bundle.open(bundle_path(), verify=False).manifest
    several = tuple(
        msgspec.structs.replace(each, **changes) if isinstance(each, ImageConditioning) else each
        for each in manifest.conditionings
    )
    return msgspec.structs.replace(manifest, conditionings=several)


def test_the_picture_has_the_size_of_the_video_and_is_given_at_both_ends_where_it_must(tmp_path: Path) -> None:
    defaults = manifest_with().defaults
    for size in ({}, {"height": 32, "width": 48}):
        request = with_picture(size, manifest_with(), tmp_path)
        assert request.keys() - size.keys() == {"image"}
        with Image.open(request["image"]) as picture:
            assert picture.size == (size.get("width", defaults.width), size.get("height", defaults.height))
    may = with_picture({}, manifest_with(last="last_image"), tmp_path)
    must = with_picture({}, manifest_with(last="last_image", last_required=True), tmp_path)
    assert "last_image" not in may and must["last_image"] == must["image"]


def test_a_clip_from_the_picture_is_that_of_the_pipeline_and_encoding_the_picture_is_a_stage_of_its_own() -> None:
    options = Options(
        cases=("picture-clip",), precisions=("fp32",), backends=("onnxruntime",), rounds=2, threads=2, quick=True,
        request=REQUEST,
    )  # fmt: skip
    rows = {row.stage: row for row in run(options, lambda text: None).rows}
    parts = [rows[stage].seconds for stage in ("text_encoder", "picture_encoder", "denoiser", "decode", "encode")]
    sums = [sum(of_one_run) for of_one_run in zip(*parts, strict=True)]
    assert sums == pytest.approx(rows["whole_run"].seconds, rel=0.02)
    assert all(min(seconds) > 0 for seconds in parts)
    request = REQUEST | {"num_frames": 5, "num_inference_steps": 2}
    with Pipeline.load(backend="onnxruntime", precision="fp32", threads=2) as pipeline:
        made = [
            pipeline.generate(PROMPT, seed=SEED, image=image, **request).frames
            for image in (red_circle(32, 32), red_circle(32, 32)[:, ::-1])
        ]
    hashes = [hashlib.sha256(frames.tobytes()).hexdigest() for frames in made]
    assert rows["whole_run"].output_sha256 == hashes[0] != hashes[1]


def test_a_bundle_that_takes_no_picture_is_told_so(wan_bundle: Path) -> None:
    options = Options(cases=("default-clip", "picture-clip"), bundle=wan_bundle, precisions=("fp32",),
                      backends=("onnxruntime",), rounds=1, quick=True, request=REQUEST)  # fmt: skip
    (row,) = (row for row in run(options, lambda text: None).rows if row.case == "picture-clip")
    assert row.stage is None and "needs a bundle that takes a picture" in (row.note or "")
