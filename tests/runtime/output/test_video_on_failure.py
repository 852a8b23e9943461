"""Videos that cannot be written are refused, as early as can be, and what stops the writing leaves no partial file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mutoscope.errors import NumericalError, OutputError, RequestError, ShapeError
from mutoscope.output import encoders
from mutoscope.output.video import check_output, write_video

from tests.runtime.clips import FILES, Frames, T, chunked, leftovers, make_header, scene


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("stop", [NumericalError("step 3 gave nan"), KeyboardInterrupt(), ConnectionError("gone")])
def test_what_stops_the_frames_comes_through_and_leaves_no_partial_file(
    tmp_path: Path, name: str, stop: BaseException
) -> None:
    def chunks() -> Iterator[Frames]:
        yield scene()[:5]
        raise stop

    with pytest.raises(type(stop)) as caught:
        write_video(tmp_path / name, chunks(), make_header())
    assert caught.value is stop
    assert leftovers(tmp_path) == []


def test_an_existing_file_is_replaced_when_the_new_one_is_whole_and_untouched_before(tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    path.write_bytes(b"before")

    def chunks() -> Iterator[Frames]:
        yield scene()[:5]
        assert path.read_bytes() == b"before"
        raise NumericalError("no")

    with pytest.raises(NumericalError):
        write_video(path, chunks(), make_header())
    assert path.read_bytes() == b"before"
    write_video(path, chunked(scene()), make_header())
    np.testing.assert_array_equal(np.load(path), scene())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("frames", [scene(T - 1), scene(T + 1), scene(T, 16, 16), scene().astype(np.float32)])
def test_frames_other_than_the_header_says_are_refused(tmp_path: Path, name: str, frames: Frames) -> None:
    with pytest.raises(ShapeError, match="frames"):
        write_video(tmp_path / name, iter([frames]), make_header())
    assert leftovers(tmp_path) == []


FULL_DISK = """
import resource, sys
import numpy as np
sys.path[:0] = {paths!r}
from clips import make_header
from mutoscope.errors import OutputError
from mutoscope.output.video import write_video
noise = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3)).astype(np.uint8)
write_video(sys.argv[1] + "/whole", iter([noise]), make_header())
for name in {names!r}:
    for limit in map(int, sys.argv[2:]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            write_video(sys.argv[1] + "/" + name, iter([noise]), make_header())
        except OutputError as error:
            assert "cannot be written" in str(error) and "larger than" in str(error), error
        else:
            print("written in spite of the limit:", name, limit)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path) -> None:
    """The limit on a file's size stands for it: a write then fails in the same place, with EFBIG for ENOSPC."""
    script = FULL_DISK.format(names=FILES, paths=[*sys.path, str(Path(__file__).parents[1])])
    limits = ["0", "100", "1000", "1700"]
    run = subprocess.run([sys.executable, "-c", script, tmp_path, *limits], capture_output=True, text=True)
    assert run.stderr == "" and run.stdout == ""
    assert leftovers(tmp_path) == ["whole"]


def test_no_space_left_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="no space left; free some"):
        write_video(tmp_path / "out.mp4", chunked(scene()), make_header())
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", ["out.mp4", "out.webm"])
@pytest.mark.parametrize("size", [(31, 48), (32, 45)])
def test_odd_sizes_are_refused_by_formats_of_halved_colour_before_the_first_frame(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    def chunks() -> Iterator[Frames]:
        pytest.fail("a frame was computed")
        yield scene()

    with pytest.raises(OutputError, match=r"even height and width.*\.gif, \.npy or a folder of PNGs"):
        write_video(tmp_path / name, chunks(), make_header(T, *size))
    assert leftovers(tmp_path) == []


def test_a_gif_faster_than_players_play_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="at most 50"):
        write_video(tmp_path / "out.gif", chunked(scene()), make_header(fps=60))


@pytest.mark.parametrize(
    ("name", "codec", "message"),
    [
        (".mp4", "auto", r"\.mp4' is only an ending; give it a name, such as out\.mp4"),
        (".GIF", "auto", "is only an ending"),
        ("out.avi", "auto", r"'\.avi'.*\.mp4, \.mov, \.mkv, \.webm, \.gif, \.webp, \.png, \.npy.*folder of PNGs"),
        ("out.mp4", "vp9", r"\.mp4 cannot hold vp9; it holds h264 or av1, and vp9 goes into \.mkv, \.webm"),
        ("frames", "av1", r"a folder cannot hold av1; .* \.mp4, \.mkv, \.webm"),
        ("out.mp4", "mpeg2", "there is no codec 'mpeg2'. There are: auto, h264"),
        ("missing/out.mp4", "auto", "no folder .*missing"),
        ("folder.mp4", "auto", r"is a folder; name a file in it, .*folder\.mp4/video\.mp4"),
        ("taken", "auto", "not an empty folder"),
        ("file", "auto", "not an empty folder"),
        ("x" * 250 + ".mp4", "auto", "name is too long"),
    ],
)
def test_a_place_or_format_that_cannot_be_is_refused_before_any_work(
    tmp_path: Path, name: str, codec: str, message: str
) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "frame_00000.png").touch()
    (tmp_path / "file").touch()
    before = leftovers(tmp_path)
    with pytest.raises(OutputError, match=message):
        check_output(tmp_path / name, codec)
    with pytest.raises(OutputError, match=message):
        write_video(tmp_path / name, chunked(scene()), make_header(), codec=codec)
    assert leftovers(tmp_path) == before


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_path_without_a_name_is_refused(path: str) -> None:
    with pytest.raises(OutputError, match=f"'{path}' does not name a file; name one, such as out.mp4"):
        check_output(path)


def test_a_folder_without_permission_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permission bits do not bind root, so the system's answer is made up."""

    def refused(self: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "touch", refused)
    with pytest.raises(OutputError, match="no permission"):
        check_output(tmp_path / "out.mp4")


def test_a_place_that_can_be_is_accepted_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in [*FILES, "empty", "empty/"]:
        check_output(f"{tmp_path}/{name}")
    assert leftovers(tmp_path) == ["empty"]
    write_video(tmp_path / "empty", chunked(scene()), make_header())
    assert len(leftovers(tmp_path / "empty")) == T + 1


def test_an_encoder_that_this_pyav_lacks_is_named_with_those_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(encoders.ENCODERS, "h264", encoders.Encoder("libnothing"))
    with pytest.raises(OutputError, match=r"needs the encoder libnothing.*: av1, vp9, gif, webp, png, npy"):
        check_output(tmp_path / "out.mp4")


def test_without_pyav_arrays_can_still_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    write_video(tmp_path / "out.npy", chunked(scene()), make_header())
    for name in ("out.mp4", "out.gif", "frames"):
        with pytest.raises(OutputError, match=r"the installed PyAV does not have it; available codecs: npy"):
            check_output(tmp_path / name)
        with pytest.raises(OutputError, match="the installed PyAV does not have it"):
            write_video(tmp_path / name, chunked(scene()), make_header())
    assert leftovers(tmp_path) == ["out.npy"]


def test_a_plan_in_place_of_a_header_is_refused_with_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"plan\.header; got SimpleNamespace"):
        write_video(tmp_path / "out.npy", [scene()], SimpleNamespace())
    assert leftovers(tmp_path) == []
