"""Clips from files and arrays: their frames, what tells one from another, and what is refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from mutoscope.clips import identity_of, read_clip
from mutoscope.errors import RequestError
from numpy.typing import NDArray

from tests.runtime.clips import H, T, W, scene

FRAMES = scene()


def lossless(frames: NDArray[np.uint8], rate: int | Fraction = 24, sound: bool = False) -> bytes:
    """A Matroska file that FFmpeg's FFV1 codec loses nothing in."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=rate)
        _, stream.height, stream.width, _ = frames.shape
        stream.pix_fmt = "bgr0"
        audio = container.add_stream("pcm_s16le", rate=8000) if sound else None
        if audio:
            silent = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            silent.rate = 8000
            container.mux(audio.encode(silent))
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def test_more_pixels_than_are_allowed_are_refused_at_the_first_frame_beyond() -> None:
    few = np.resize(FRAMES, (3, 490, 840, 3))
    for given, counted, todo in ((few, 490 * 840, "cut it, or make it smaller"), (FRAMES, 480 * 832, "cut it")):
        count, height, width, _ = given.shape
        enough, less = (read_clip(lossless(given), most_pixels=count * counted - short) for short in (0, 1))
        assert sum(1 for _ in enough.frames()) == count
        frames, found = less.frames(), []
        words = f"video has more than {count - 1} frames, .*{width}x{height} pixels; {todo}$"
        with pytest.raises(RequestError, match=words):
            found.extend(frames)
        assert len(found) == count - 1


def test_frames_of_a_file_that_loses_nothing_are_those_that_went_into_it(tmp_path: Path) -> None:
    path = tmp_path / "clip.bin"  # the name says nothing
    path.write_bytes(lossless(FRAMES))
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), FRAMES):
        clip = read_clip(source)
        assert (clip.head.height, clip.head.width) == (H, W)
        for _ in range(2):  # as often as they are asked for
            assert np.array_equal(np.stack(list(clip.frames())), FRAMES)
        assert read_clip(clip) is clip


def test_a_file_says_its_rate_and_whether_there_is_sound() -> None:
    heads = [read_clip(lossless(FRAMES, rate=Fraction(30000, 1001), sound=sound)).head for sound in (False, True)]
    assert [head.has_sound for head in heads] == [False, True]
    assert all(head.rate == pytest.approx(30000 / 1001, rel=1e-4) for head in heads)
    assert read_clip(FRAMES).head.rate is None


def test_the_identity_is_that_of_the_pixels_and_of_their_number() -> None:
    file, array = (identity_of(read_clip(source).frames()) for source in (lossless(FRAMES), FRAMES))
    assert file == array
    assert file.startswith(f"{W}x{H}x{T} sha256:")
    others = [FRAMES[:-1], FRAMES[::-1], FRAMES.reshape(T, W, H, 3)]
    assert len({file, *(identity_of(read_clip(np.ascontiguousarray(other)).frames()) for other in others)}) == 4


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda folder: folder / "none.mp4", "video is not there: .*none.mp4"),
        (lambda folder: folder, "video is a folder"),
        (lambda folder: b"", "video is not a video that can be read: 0 bytes"),
        (lambda folder: b"not a video", "can be read: 11 bytes: FFmpeg knows no video .* MP4, MOV, MKV, WebM or AVI"),
        (lambda folder: lossless(FRAMES)[:300], "video is not a video that can be read: 300 bytes"),
        (lambda folder: FRAMES[0], r"video must be an array uint8 \[T, H, W, 3\] .* got uint8 \[32, 48, 3\]"),
        (lambda folder: FRAMES.astype(np.float32), "got float32"),
        (lambda folder: 7, "video must be a path, .* got int"),
    ],
    ids=["no file", "a folder", "no bytes", "text", "cut off", "one picture", "floats", "a number"],
)
def test_what_is_no_clip_is_refused_by_its_parameter(
    tmp_path: Path, source: Callable[[Path], Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        read_clip(source(tmp_path))


def test_a_file_that_was_replaced_meanwhile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    path.write_bytes(lossless(FRAMES))
    clip = read_clip(path)
    path.write_bytes(lossless(FRAMES[:, : H // 2]))
    with pytest.raises(RequestError, match="it became another file meanwhile"):
        list(clip.frames())
