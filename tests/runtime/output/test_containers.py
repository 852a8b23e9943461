"""Rates, colours and names of MP4, QuickTime, Matroska and WebM, as ffprobe and PyAV read them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from mutoscope.output.video import write_video
from numpy.typing import NDArray

from tests.runtime.clips import H, T, W, chunked, leftovers, make_header, scene

NTSC = Fraction(24000, 1001)
CONTAINERS = {  # ending to what ffprobe calls the format, and the codec that "auto" means
    ".mp4": ("mov,mp4,m4a,3gp,3g2,mj2", "h264"),
    ".mov": ("mov,mp4,m4a,3gp,3g2,mj2", "h264"),
    ".mkv": ("matroska,webm", "h264"),
    ".webm": ("matroska,webm", "vp9"),
}


def probed(path: Path) -> dict[str, Any]:
    command = [
        "ffprobe",
        "-v",
        "error",
        "-count_frames",
        "-show_streams",
        "-show_format",
        "-of",
        "json",
        f"file:{path}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return dict(json.loads(done.stdout))


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
@pytest.mark.parametrize("fps", [Fraction(16), Fraction(25, 2), NTSC, Fraction(2997, 125)], ids=str)
@pytest.mark.parametrize("ending", CONTAINERS)
def test_ffprobe_reads_the_exact_rate_and_what_players_need(tmp_path: Path, ending: str, fps: Fraction) -> None:
    found = probed(write_video(tmp_path / f"out{ending}", chunked(scene()), make_header(fps=fps), metadata="full"))
    (stream,) = found["streams"]
    assert (found["format"]["format_name"], stream["codec_name"]) == CONTAINERS[ending]
    assert Fraction(stream["avg_frame_rate"]) == Fraction(stream["r_frame_rate"]) == fps
    assert float(found["format"]["duration"]) == pytest.approx(float(T / fps), abs=0.002)
    assert (int(stream["nb_read_frames"]), stream["width"], stream["height"]) == (T, W, H)
    assert (stream["pix_fmt"], stream["color_range"], stream["color_space"]) == ("yuv420p", "tv", "bt709")
    tags = {name.lower(): value for name, value in (found["format"]["tags"]).items()}
    assert tags["title"] == make_header().title and json.loads(tags["comment"])["seed"] == 7


def test_a_quicktime_file_says_that_it_is_one(tmp_path: Path) -> None:
    content = write_video(tmp_path / "out.mov", chunked(scene()), make_header()).read_bytes()
    assert content[4:12] == b"ftypqt  "  # QuickTime File Format, the file type atom
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("codec", ["h264", "av1", "vp9"])
def test_matroska_holds_every_codec(tmp_path: Path, codec: str) -> None:
    with av.open(str(write_video(tmp_path / "out.mkv", chunked(scene()), make_header(), codec=codec))) as container:
        assert container.streams.video[0].codec_context.codec.canonical_name == codec
        assert sum(1 for _ in container.decode(video=0)) == T


@pytest.mark.parametrize(
    "name", ["12:30.gif", "a:b.mp4", "wan:final.webm", "http:x.mov", "file:x.mkv", "data:x.webp", "a:b.png", "a:frames"]
)
def test_a_name_with_a_colon_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """FFmpeg takes "12" and "http" for protocols, unless told that it is a file."""
    monkeypatch.chdir(tmp_path)
    count = 1 if name.endswith(".png") else T
    write_video(name, chunked(scene(count)), make_header(count))
    assert leftovers(tmp_path) == [name]


@pytest.mark.skipif(sys.platform != "linux", reason="threads are scheduled so on Linux alone")
def test_no_encoder_makes_a_thread_real_time(tmp_path: Path) -> None:
    """SVT-AV1 does where it may, which is as root."""

    def policies() -> set[int]:
        return {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}

    seen = []

    def chunks() -> Iterator[NDArray[np.uint8]]:
        for chunk in chunked(scene()):
            yield chunk
            seen.append(policies())  # where the encoder is open

    before = policies()
    write_video(tmp_path / "out.mkv", chunks(), make_header(), codec="av1")
    assert before == policies() and seen and all(each == before for each in seen)
