"""Written videos, read back by PyAV's decoders, Pillow, NumPy, and byte by byte where their order matters."""

from __future__ import annotations

import gc
import json
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from mutoscope.output import FORMATS, encoders
from mutoscope.output.frames import VideoHeader
from mutoscope.output.video import write_video
from PIL import Image

from tests.runtime.clips import FILES, Frames, H, T, W, chunked, leftovers, make_header, pillow_frames, scene


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
def test_a_container_holds_codec_size_rate_and_recipe(tmp_path: Path, name: str, codec: str, decoder: str) -> None:
    path = write_video(tmp_path / name, chunked(scene()), make_header(), codec=codec, metadata="full")
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
    assert metadata["title"] == make_header().title
    assert metadata["comment"] == make_header().recipe


@pytest.mark.parametrize(("name", "codec"), [("out.mp4", "h264"), ("out.mp4", "av1"), ("out.webm", "vp9")])
def test_colours_survive_within_a_few_levels(tmp_path: Path, name: str, codec: str) -> None:
    frames = scene()
    result = decoded(write_video(tmp_path / name, chunked(frames), make_header(), codec=codec))
    assert result.shape == frames.shape
    error = result - frames
    for index in range(T):  # away from edges, where 4:2:0 and the encoder may blur
        block = error[index, 12:20, 2 * index + 4 : 2 * index + 12]
        background = error[index, 4:28, 40:46]
        # The matrix of BT.601 in the place of BT.709's would be some 20 levels off in both.
        assert np.abs(block.mean((0, 1))).max() < 5
        assert np.abs(background.mean((0, 1))).max() < 3


def test_an_mp4_has_its_index_before_its_data(tmp_path: Path) -> None:
    content = write_video(tmp_path / "out.mp4", chunked(scene()), make_header()).read_bytes()
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
    first = write_video(tmp_path / f"1{name}", chunked(scene()), make_header()).read_bytes()
    for _ in range(10):
        assert write_video(tmp_path / f"2{name}", iter([scene()]), make_header()).read_bytes() == first


@pytest.mark.parametrize("size", [(H, W), (31, 45)])
def test_a_gif_shows_every_frame_in_its_colours_at_its_rate_for_ever(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = scene(T, *size)
    path = write_video(tmp_path / "out.gif", chunked(frames), make_header(T, *size))
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
    result = pillow_frames(write_video(tmp_path / "out.gif", chunked(frames), make_header(T, 48, 64))).astype(int)
    assert np.abs(np.diff(result[:, :32], axis=0)).max() == 0
    assert np.abs(result[:, :32] - frames[:, :32]).mean() < 16


def test_a_gif_carries_the_recipe_in_a_comment_extension(tmp_path: Path) -> None:
    content = write_video(tmp_path / "out.gif", chunked(scene()), make_header(), metadata="full").read_bytes()
    assert content[:6] == b"GIF89a" and content[-1] == 0x3B
    at, text = content.rindex(b"\x21\xfe") + 2, b""
    while size := content[at]:
        text += content[at + 1 : at + 1 + size]
        at += size + 1
    assert at == len(content) - 2
    assert json.loads(text)["prompt"] == make_header().title


def test_npy_and_pngs_are_exact(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (T, 31, 45, 3)).astype(np.uint8)
    header = make_header(T, 31, 45)
    array = np.load(write_video(tmp_path / "out.npy", chunked(frames), header), allow_pickle=False)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, frames)
    folder = write_video(f"{tmp_path}/clip.v2/", chunked(frames), header)
    assert leftovers(folder) == [f"frame_{index:05d}.png" for index in range(T)] + ["plan.json"]
    for index in range(T):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"frame_{index:05d}.png")), frames[index])
    assert json.loads((folder / "plan.json").read_text())["seed"] == 7
    assert leftovers(tmp_path) == ["clip.v2", "out.npy"]


def test_one_frame_is_a_video_too(tmp_path: Path) -> None:
    for name in FILES:
        write_video(tmp_path / name, iter([scene(1)]), make_header(1))
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
    write_video(tmp_path / name, chunks(), make_header(400, 16, 16))
    assert 1 <= most <= 60


def test_the_environment_of_the_process_is_left_alone(tmp_path: Path) -> None:
    before = dict(os.environ)
    write_video(tmp_path / "out.mp4", chunked(scene()), make_header(), codec="av1")
    assert dict(os.environ) == before


def test_two_threads_may_write_the_same_name(tmp_path: Path) -> None:
    barrier = threading.Barrier(2, timeout=30)

    def chunks(frames: Frames) -> Iterator[Frames]:
        yield frames[:5]
        barrier.wait()
        yield frames[5:]

    clips = [scene(), scene()[:, ::-1]]
    threads = [
        threading.Thread(target=write_video, args=(tmp_path / "out.npy", chunks(clip), make_header())) for clip in clips
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


def test_frames_from_elsewhere_are_written_with_what_is_known_of_them(tmp_path: Path) -> None:
    header = VideoHeader(height=H, width=W, num_frames=T, fps=Fraction(16))
    for name in ("out.mp4", "out.gif", "frames"):
        write_video(tmp_path / name, [scene()], header)
    write_video(tmp_path / "out.png", [scene(1)], replace(header, num_frames=1))
    assert (tmp_path / "out.gif").read_bytes().count(b"\x21\xfe") == 1  # the tag alone
    assert (tmp_path / "out.png").read_bytes().count(b"tEXt") == 1
    assert leftovers(tmp_path / "frames")[-1] == f"frame_{T - 1:05d}.png"
