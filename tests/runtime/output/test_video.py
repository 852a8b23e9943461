"""Written videos, read back by PyAV's decoders, Pillow, NumPy, and by hand where order of bytes matters."""

import errno
import gc
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from mutoscope.errors import NumericalError, OutputError, ShapeError
from mutoscope.output import FORMATS, encoders
from mutoscope.output.video import check_output, write_video
from PIL import Image

from tests.runtime.clips import Frames, H, T, W, chunked, leftovers, make_plan, pillow_frames, scene

FILES = ["out.mp4", "out.mov", "out.mkv", "out.webm", "out.gif", "out.webp", "out.npy", "frames"]


def decoded(path: Path) -> Frames:
    """RGB by the matrix of ITU-R BT.709, studio swing, written out here: swscale has no part in it."""
    clip = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            y, u, v = (
                np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width].astype(float)
                for plane in frame.planes
            )
            luma = (y - 16) / 219
            cb, cr = ((chroma.repeat(2, 0).repeat(2, 1) - 128) / 224 for chroma in (u, v))
            red, blue = luma + 2 * (1 - 0.2126) * cr, luma + 2 * (1 - 0.0722) * cb
            clip.append(np.stack([red, (luma - 0.2126 * red - 0.0722 * blue) / 0.7152, blue], -1) * 255)
    return np.clip(np.stack(clip), 0, 255)


@pytest.mark.parametrize(
    ("name", "codec", "decoder"),
    [
        ("out.mp4", "auto", "h264"),
        ("OUT.MP4", "h264", "h264"),
        ("out.mp4", "av1", "av1"),
        ("out.webm", "auto", "vp9"),
        ("out.webm", "av1", "av1"),
    ],
)
def test_a_container_holds_codec_size_rate_and_plan(tmp_path: Path, name: str, codec: str, decoder: str) -> None:
    path = write_video(tmp_path / name, chunked(scene()), make_plan(), codec=codec)
    assert leftovers(tmp_path) == [name]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert context.codec.canonical_name == decoder
        assert (context.width, context.height, context.pix_fmt) == (W, H, "yuv420p")
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        assert stream.average_rate == 16
        assert container.duration == pytest.approx(T / 16 * 1e6, abs=1000)
        metadata = {key.lower(): value for key, value in container.metadata.items()}
    assert metadata["title"] == make_plan().prompt
    recipe = json.loads(metadata["comment"])
    assert recipe["prompt"] == make_plan().prompt
    assert (recipe["seed"], recipe["bundle_sha256"], recipe["timesteps"]) == (7, "ab" * 32, [999.0, 500.0])
    assert "someone" not in metadata["comment"]


@pytest.mark.parametrize(("name", "codec"), [("out.mp4", "h264"), ("out.mp4", "av1"), ("out.webm", "vp9")])
def test_colours_survive_within_a_few_levels(tmp_path: Path, name: str, codec: str) -> None:
    frames = scene()
    result = decoded(write_video(tmp_path / name, chunked(frames), make_plan(), codec=codec))
    assert result.shape == frames.shape
    error = result - frames
    for index in range(T):  # away from edges, where 4:2:0 and the encoder may blur
        block = error[index, 12:20, 2 * index + 4 : 2 * index + 12]
        background = error[index, 4:28, 40:46]
        # The matrix of BT.601 in the place of BT.709's would be some 20 levels off in both.
        assert np.abs(block.mean((0, 1))).max() < 5
        assert np.abs(background.mean((0, 1))).max() < 3


def test_an_mp4_has_its_index_before_its_data(tmp_path: Path) -> None:
    content = write_video(tmp_path / "out.mp4", chunked(scene()), make_plan()).read_bytes()
    boxes, at = [], 0
    while at < len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        boxes.append(kind.decode())
        at += size
    assert at == len(content)
    assert boxes.index("moov") < boxes.index("mdat")


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.mkv", "out.webm", "out.gif", "out.webp"])
def test_the_same_frames_give_the_same_file(tmp_path: Path, name: str) -> None:
    """Ten times: x264 with AVX-512 gave some of them otherwise."""
    first = write_video(tmp_path / f"1{name}", chunked(scene()), make_plan()).read_bytes()
    for _ in range(10):
        assert write_video(tmp_path / f"2{name}", iter([scene()]), make_plan()).read_bytes() == first


@pytest.mark.parametrize("size", [(H, W), (31, 45)])
def test_a_gif_shows_every_frame_in_its_colours_at_its_rate_for_ever(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = scene(T, *size)
    path = write_video(tmp_path / "out.gif", chunked(frames), make_plan(T, *size))
    assert leftovers(tmp_path) == ["out.gif"]
    assert np.abs(pillow_frames(path).astype(int) - frames).max() <= 12  # a few dozen colours fit, but for the dither
    with Image.open(path) as image:
        assert image.info["loop"] == 0
        durations = []
        for index in range(T):
            image.seek(index)
            durations.append(image.info["duration"])
    assert sum(durations) == pytest.approx(1000 * T / 16, abs=10)


def test_a_still_background_stands_still_in_a_gif(tmp_path: Path) -> None:
    """Noise of a dither that differs from frame to frame is what makes GIFs shimmer."""
    y, x = np.mgrid[:48, :64]
    still = np.stack([4 * x, 5 * y, 2 * (x + y)], -1).clip(0, 255).astype(np.uint8)  # thousands of colours
    frames = np.stack([still] * T)
    for index, frame in enumerate(frames):
        frame[40:, 4 * index : 4 * index + 8] = 255
    result = pillow_frames(write_video(tmp_path / "out.gif", chunked(frames), make_plan(T, 48, 64))).astype(int)
    assert np.abs(np.diff(result[:, :32], axis=0)).max() == 0
    assert np.abs(result[:, :32] - frames[:, :32]).mean() < 16


def test_a_gif_carries_the_plan_in_a_comment_extension(tmp_path: Path) -> None:
    content = write_video(tmp_path / "out.gif", chunked(scene()), make_plan()).read_bytes()
    assert content[:6] == b"GIF89a" and content[-1] == 0x3B
    at, text = content.rindex(b"\x21\xfe") + 2, b""
    while size := content[at]:
        text += content[at + 1 : at + 1 + size]
        at += size + 1
    assert at == len(content) - 2
    assert json.loads(text)["prompt"] == make_plan().prompt


def test_npy_and_pngs_are_exact(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (T, 31, 45, 3)).astype(np.uint8)
    plan = make_plan(T, 31, 45)
    array = np.load(write_video(tmp_path / "out.npy", chunked(frames), plan), allow_pickle=False)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, frames)
    folder = write_video(f"{tmp_path}/clip.v2/", chunked(frames), plan)
    assert leftovers(folder) == [f"frame_{index:05d}.png" for index in range(T)] + ["plan.json"]
    for index in range(T):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"frame_{index:05d}.png")), frames[index])
    assert json.loads((folder / "plan.json").read_text())["seed"] == 7
    assert leftovers(tmp_path) == ["clip.v2", "out.npy"]


def test_one_frame_is_a_video_too(tmp_path: Path) -> None:
    for name in FILES:
        write_video(tmp_path / name, iter([scene(1)]), make_plan(1))
    assert decoded(tmp_path / "out.mp4").shape == (1, H, W, 3)
    assert len(pillow_frames(tmp_path / "out.gif")) == 1


@pytest.mark.parametrize("name", FILES)
def test_chunks_are_written_as_they_come_and_not_kept(tmp_path: Path, name: str) -> None:
    """Of two hundred chunks only as many live at once as an encoder looks ahead."""
    alive: set[int] = set()
    most = 0

    class Chunk(np.ndarray):  # type: ignore[type-arg]
        def __del__(self) -> None:
            alive.discard(id(self))

    def chunks() -> Iterator[Frames]:
        nonlocal most
        for _ in range(200):
            chunk = Chunk((2, 16, 16, 3), np.uint8)  # owns its pixels, so that whatever uses them keeps it alive
            chunk[...] = 0
            alive.add(id(chunk))
            most = max(most, len(alive))
            yield chunk
            del chunk

    gc.collect()
    write_video(tmp_path / name, chunks(), make_plan(400, 16, 16))
    assert 1 <= most <= 60


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("stop", [NumericalError("step 3 gave nan"), KeyboardInterrupt(), ConnectionError("gone")])
def test_what_stops_the_frames_comes_through_and_leaves_no_partial_file(
    tmp_path: Path, name: str, stop: BaseException
) -> None:
    def chunks() -> Iterator[Frames]:
        yield scene()[:5]
        raise stop

    with pytest.raises(type(stop)) as caught:
        write_video(tmp_path / name, chunks(), make_plan())
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
        write_video(path, chunks(), make_plan())
    assert path.read_bytes() == b"before"
    write_video(path, chunked(scene()), make_plan())
    np.testing.assert_array_equal(np.load(path), scene())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("frames", [scene(T - 1), scene(T + 1), scene(T, 16, 16), scene().astype(np.float32)])
def test_frames_other_than_planned_are_refused(tmp_path: Path, name: str, frames: Frames) -> None:
    with pytest.raises(ShapeError, match="plan says"):
        write_video(tmp_path / name, iter([frames]), make_plan())
    assert leftovers(tmp_path) == []


FULL_DISK = """
import resource, sys
import numpy as np
sys.path[:0] = {paths!r}
from clips import make_plan
from mutoscope.errors import OutputError
from mutoscope.output.video import write_video
noise = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3)).astype(np.uint8)
write_video(sys.argv[1] + "/whole", iter([noise]), make_plan())
for name in {names!r}:
    for limit in map(int, sys.argv[2:]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            write_video(sys.argv[1] + "/" + name, iter([noise]), make_plan())
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
        write_video(tmp_path / "out.mp4", chunked(scene()), make_plan())
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
        write_video(tmp_path / name, chunks(), make_plan(T, *size))
    assert leftovers(tmp_path) == []


def test_a_gif_faster_than_players_play_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="at most 50"):
        write_video(tmp_path / "out.gif", chunked(scene()), make_plan(fps=60))


@pytest.mark.parametrize(
    ("name", "codec", "message"),
    [
        (".mp4", "auto", r"\.mp4' is only an ending; give it a name, such as out\.mp4"),
        (".GIF", "auto", "is only an ending"),
        ("out.avi", "auto", r"'\.avi'.*\.mp4, \.mov, \.mkv, \.webm, \.gif, \.webp, \.png, \.npy.*folder of PNGs"),
        ("out.mp4", "vp9", r"\.mp4 cannot hold vp9; it holds h264 or av1, and vp9 goes into \.mkv, \.webm"),
        ("frames", "av1", r"a folder cannot hold av1; .* \.mp4, \.mkv, \.webm"),
        ("out.mp4", "mpeg2", "no codec is called 'mpeg2'; there are: auto, h264"),
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
        write_video(tmp_path / name, chunked(scene()), make_plan(), codec=codec)
    assert leftovers(tmp_path) == before


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_path_without_a_name_is_refused(path: str) -> None:
    with pytest.raises(OutputError, match=f"'{path}' names no file; name one, such as out.mp4"):
        check_output(path)


def test_the_environment_of_the_process_is_left_alone(tmp_path: Path) -> None:
    before = dict(os.environ)
    write_video(tmp_path / "out.mp4", chunked(scene()), make_plan(), codec="av1")
    assert dict(os.environ) == before


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
    write_video(tmp_path / "empty", chunked(scene()), make_plan())
    assert len(leftovers(tmp_path / "empty")) == T + 1


def test_an_encoder_that_this_pyav_lacks_is_named_with_those_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(encoders.ENCODERS, "h264", encoders.Encoder("libnothing"))
    with pytest.raises(OutputError, match=r"no PyAV here with libnothing.*: av1, vp9, gif, webp, png, npy"):
        check_output(tmp_path / "out.mp4")


def test_without_pyav_arrays_can_still_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    write_video(tmp_path / "out.npy", chunked(scene()), make_plan())
    for name in ("out.mp4", "out.gif", "frames"):
        with pytest.raises(OutputError, match=r"no PyAV here with .* what can be written: npy"):
            check_output(tmp_path / name)
        with pytest.raises(OutputError, match="no PyAV here"):
            write_video(tmp_path / name, chunked(scene()), make_plan())
    assert leftovers(tmp_path) == ["out.npy"]


def test_two_threads_may_write_the_same_name(tmp_path: Path) -> None:
    barrier = threading.Barrier(2, timeout=30)

    def chunks(frames: Frames) -> Iterator[Frames]:
        yield frames[:5]
        barrier.wait()
        yield frames[5:]

    clips = [scene(), scene()[:, ::-1]]
    threads = [
        threading.Thread(target=write_video, args=(tmp_path / "out.npy", chunks(clip), make_plan())) for clip in clips
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert leftovers(tmp_path) == ["out.npy"]
    result = np.load(tmp_path / "out.npy")
    assert any(np.array_equal(result, clip) for clip in clips)


def test_every_codec_of_a_format_has_an_encoder_or_needs_none() -> None:
    codecs = {codec for kind in FORMATS.values() for codec in kind.codecs}
    assert codecs - {"npy"} == set(encoders.ENCODERS)
