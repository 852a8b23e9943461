"""Which files get the watermark, as other programs read them, and what is said where one has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from mutoscope.errors import RequestError
from mutoscope.output.video import check_output, write_file
from mutoscope.provenance.watermark import read
from PIL import Image

from tests.runtime.clips import Frames, make_header, pillow_frames, scene
from tests.runtime.provenance.pictures import landscape

CLIP = landscape(3, 256, 272)
HEADER = make_header(3, 256, 272)


def frames_of(path: Path) -> Frames:
    if path.is_dir():
        return np.concatenate([pillow_frames(picture) for picture in sorted(path.glob("*.png"))])
    if path.suffix in (".gif", ".webp"):
        return pillow_frames(path)
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.mkv", "out.webm", "out.gif", "out.webp", "frames"])
def test_what_people_look_at_has_the_watermark(tmp_path: Path, name: str) -> None:
    file = write_file(tmp_path / name, [CLIP[:1], CLIP[1:]], HEADER)
    assert read([frames_of(file.path)]).bits >= 56
    assert file.layers["watermark"].present and file.layers["watermark"].detail.endswith("bits before the codec")
    assert file.layers["tag"].present


def test_a_single_picture_has_it_and_another_one_without_is_the_frame_itself(tmp_path: Path) -> None:
    header = replace(HEADER, num_frames=1)
    with Image.open(write_file(tmp_path / "out.png", [CLIP[:1]], header).path) as image:
        assert read([np.asarray(image)[None]]).found
    file = write_file(tmp_path / "off.png", [CLIP[:1]], header, watermark=False)
    with Image.open(file.path) as image:
        assert np.array_equal(np.asarray(image), CLIP[0])
    assert (file.layers["watermark"].present, file.layers["watermark"].detail) == (False, "turned off")


def test_an_array_holds_the_frames_as_they_were_made_and_says_so(tmp_path: Path) -> None:
    file = write_file(tmp_path / "out.npy", [CLIP], HEADER)
    assert np.array_equal(np.load(file.path), CLIP)
    assert file.to_dict()["layers"]["watermark"] == {
        "present": False, "detail": "the format keeps the frames as they were made"
    }  # fmt: skip
    assert not file.layers["tag"].present


def test_a_small_video_says_that_it_has_none(tmp_path: Path) -> None:
    layer = write_file(tmp_path / "out.mp4", [scene()], make_header()).layers["watermark"]
    assert not layer.present and "32x48 is smaller than 256x256" in layer.detail


def test_frames_that_cannot_hold_it_are_told(tmp_path: Path) -> None:
    """The opposite of the watermark, at twelve times its strength."""
    grey = np.full((1, 256, 272, 3), 128, np.uint8)
    header = replace(HEADER, num_frames=1)
    with Image.open(write_file(tmp_path / "grey.png", [grey], header).path) as image:
        marked = np.asarray(image).astype(int)
    opposite = np.clip(128 - 12 * (marked[None] - 128), 0, 255).astype(np.uint8)
    layer = write_file(tmp_path / "out.png", [opposite], header).layers["watermark"]
    assert not layer.present and layer.detail.startswith("these frames cannot hold one: ")


def test_a_switch_that_is_none_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="watermark must be True or False"):
        check_output(tmp_path / "out.mp4", watermark="no")  # type: ignore[arg-type]
