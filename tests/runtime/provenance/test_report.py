"""Each layer of a file is found by itself, in files of any origin."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from mutoscope.output.video import write_video
from mutoscope.provenance.report import examine, is_pictures
from PIL import Image

from tests.runtime.clips import make_header
from tests.runtime.provenance.pictures import encoded, landscape

CLIP = landscape(5)
HEADER = make_header(5, 256, 320)


def written(path: Path, **options: object) -> Path:
    return write_video(path, [CLIP], HEADER, **options)


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "out.gif", "frames"])
def test_tag_and_watermark_are_found_where_they_are(tmp_path: Path, name: str) -> None:
    report = examine(written(tmp_path / name))
    assert report.layers == ["tag", "watermark"]
    assert report.watermark is not None and report.watermark.frames == 5
    assert report.describe()["watermark"].startswith("found, ")
    assert examine(written(tmp_path / f"un{name}", watermark=False)).layers == ["tag"]


def test_the_watermark_outlives_another_encoding_and_the_tag_does_not(tmp_path: Path) -> None:
    path = written(tmp_path / "out.mp4")
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    np.save(tmp_path / "again.npy", encoded(frames, crf="23"))
    assert examine(tmp_path / "again.npy").layers == ["watermark"]


def test_of_a_stranger_nothing_is_found(tmp_path: Path) -> None:
    Image.fromarray(CLIP[0]).save(tmp_path / "photograph.jpg")
    report = examine(tmp_path / "photograph.jpg")
    assert report.layers == [] and report.signature.state in ("none", "unchecked")
    assert "50 would be needed" in report.describe()["watermark"]


@pytest.mark.parametrize("content", [b"", b"no video", b"\x93NUMPY\x01\x00 cut off"])
@pytest.mark.parametrize("name", ["a.mp4", "a.npy", "a"])
def test_what_has_no_frames_is_not_looked_through(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    report = examine(tmp_path / name)
    assert report.watermark is None and report.layers == []
    assert "cannot decode" in report.describe()["watermark"]


def test_an_array_that_is_no_video_is_not_looked_through(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 256, 256)))
    assert examine(tmp_path / "a.npy").watermark is None


def test_tiny_frames_are_told_apart_from_unmarked_ones(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", CLIP[:, :32, :32])
    assert "too small" in examine(tmp_path / "a.npy").describe()["watermark"]


def test_a_folder_of_pictures_is_known_by_them(tmp_path: Path) -> None:
    assert not is_pictures(tmp_path)
    assert is_pictures(written(tmp_path / "frames")) and not is_pictures(written(tmp_path / "out.mp4"))


def test_of_many_pictures_the_worst_signature_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("c2pa")
    monkeypatch.setattr("mutoscope.output.signing.is_available", lambda: True)
    folder = written(tmp_path / "frames")
    assert examine(folder).signature.state == "trusted"
    assert examine(folder).layers == ["tag", "watermark", "signature"]
    picture = folder / "frame_00003.png"
    content = bytearray(picture.read_bytes())
    content[-20] ^= 1
    picture.write_bytes(bytes(content))
    assert examine(folder).signature.state == "invalid"
