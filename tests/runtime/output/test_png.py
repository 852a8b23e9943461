"""A single PNG, read by Pillow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mutoscope.errors import OutputError
from mutoscope.output.video import write_video
from PIL import Image

from tests.runtime.clips import Frames, chunked, leftovers, make_header, scene


def test_the_only_frame_is_exact_and_carries_the_recipe(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 31, 45, 3)).astype(np.uint8)
    path = write_video(tmp_path / "Out.PNG", iter([frames]), make_header(1, 31, 45), metadata="full")
    assert leftovers(tmp_path) == ["Out.PNG"]
    with Image.open(path) as image:
        image.verify()  # the checksums of all chunks
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), frames[0])
        assert json.loads(image.info["Comment"])["prompt"] == make_header().title


def test_several_frames_are_refused_before_the_first_is_computed(tmp_path: Path) -> None:
    def chunks() -> Iterator[Frames]:
        pytest.fail("a frame was computed")
        yield scene()

    with pytest.raises(
        OutputError, match=r"a \.png holds one frame, and the video has 9; ask for num_frames=1, or name"
    ):
        write_video(tmp_path / "out.png", chunks(), make_header())
    assert leftovers(tmp_path) == []


def test_a_rate_that_is_no_whole_number_changes_no_pixel(tmp_path: Path) -> None:
    folder = write_video(tmp_path / "frames", chunked(scene()), make_header(fps="24000/1001"))
    for number, frame in enumerate(scene()):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"frame_{number:05d}.png")), frame)
    assert json.loads((folder / "plan.json").read_text())["seed"] == 7
