"""Picture files of every kind, against arrays that no library for pictures made, and what is refused."""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import av
import numpy as np
import pytest
from mutoscope.errors import RequestError
from mutoscope.output.video import write_video
from mutoscope.pictures import open_picture, read_picture, read_pictures
from mutoscope.video_files import decoded_frames
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from tests.runtime.clips import H, W, chunked, make_header, scene
from tests.runtime.test_clips import lossless

COLORS = np.random.default_rng(5).integers(0, 256, (5, 7, 3), np.uint8)
ORIENTATION = 0x112  # of EXIF


def stored(picture: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, color_type: int, rows: list[bytes], *more: tuple[bytes, bytes]) -> bytes:
    """As its specification says: a signature and chunks, each with its length and its CRC."""
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), *more, (b"IDAT", data), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("QOI", {}), ("JPEG2000", {}), ("WEBP", {"lossless": True})],
)
def test_a_file_that_loses_nothing_has_the_pixels_that_went_into_it(kind: str, options: dict[str, Any]) -> None:
    assert np.array_equal(open_picture(stored(COLORS, kind, **options)), COLORS)


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_a_lossy_file_has_nearly_the_pixels_that_went_into_it(kind: str) -> None:
    smooth = scene(1)[0]
    difference = np.abs(open_picture(stored(smooth, kind, quality=95)).astype(int) - smooth)
    assert difference.mean() < 3


def test_a_path_bytes_and_an_array_are_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"  # the name says nothing
    path.write_bytes(stored(COLORS, "PNG"))
    mirrored = np.ascontiguousarray(COLORS[:, ::-1])[:, ::-1]  # the same values in another order in memory
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), COLORS, mirrored):
        found = open_picture(source)
        assert np.array_equal(found, COLORS)
        assert found.flags.c_contiguous


def test_the_identity_is_that_of_the_pixels() -> None:
    def identity(source: Any) -> str:
        return read_picture(source).identity

    assert identity(COLORS) == identity(stored(COLORS, "PNG")) == identity(stored(COLORS, "BMP"))
    assert identity(COLORS).startswith("7x5 sha256:")
    assert len({identity(COLORS), identity(COLORS[::-1]), identity(COLORS.reshape(7, 5, 3))}) == 3


TURNED = {  # how a viewer shows it, by its EXIF orientation
    1: COLORS, 2: COLORS[:, ::-1], 3: COLORS[::-1, ::-1], 4: COLORS[::-1], 5: COLORS.transpose(1, 0, 2),
    6: np.rot90(COLORS, -1), 7: COLORS[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(COLORS),
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_picture_is_turned_as_its_exif_data_says(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert np.array_equal(open_picture(stored(COLORS, kind, exif=exif)), TURNED[orientation])


def test_transparent_parts_are_white_and_hide_their_colors() -> None:
    alpha = np.arange(35, dtype=np.uint8).reshape(5, 7, 1) * 7
    alpha[0, 0] = 0
    found = read_picture(stored(np.concatenate([COLORS, alpha], axis=2), "PNG"))
    share = alpha / 255
    assert np.abs(found.pixels - (COLORS * share + 255 * (1 - share))).max() <= 1
    assert found.pixels[0, 0].tolist() == [255, 255, 255]
    assert found.notes == ("image is transparent in parts, which become white; for another color, fill them before",)


def test_alpha_that_hides_nothing_changes_nothing() -> None:
    opaque = np.concatenate([COLORS, np.full((5, 7, 1), 255, np.uint8)], axis=2)
    found = read_picture(stored(opaque, "PNG"))
    assert np.array_equal(found.pixels, COLORS)
    assert found.notes == ()


def test_a_palette_gives_its_colors_and_white_for_its_transparent_one() -> None:
    rows = [bytes([0, 1, 2]), bytes([2, 2, 1])]
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255])
    plain = open_picture(png(3, 2, 8, 3, rows, (b"PLTE", palette)))
    assert plain[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    holed = open_picture(png(3, 2, 8, 3, rows, (b"PLTE", palette), (b"tRNS", bytes([255, 0]))))
    assert holed[:, :, 1].tolist() == [[0, 255, 0], [0, 0, 255]]
    assert holed[0, 1].tolist() == [255, 255, 255]


def test_of_16_bits_the_upper_8_count_in_grey_and_in_color() -> None:
    grey = np.array([[0, 255, 256], [0x8000, 0xFEFF, 0xFFFF]], ">u2")
    expected = np.repeat(np.array([[0, 0, 1], [128, 254, 255]], np.uint8)[..., None], 3, axis=2)
    color = np.repeat(grey[..., None], 3, axis=2)
    assert np.array_equal(open_picture(png(3, 2, 16, 0, [row.tobytes() for row in grey])), expected)
    assert np.array_equal(open_picture(png(3, 2, 16, 2, [row.tobytes() for row in color])), expected)
    assert np.array_equal(open_picture(stored(grey.astype("<u2"), "TIFF")), expected)
    assert np.array_equal(open_picture(b"P5 3 2 65535\n" + grey.tobytes()), expected)
    holed = open_picture(png(3, 2, 16, 0, [row.tobytes() for row in grey], (b"tRNS", struct.pack(">H", 256))))
    assert holed[0, :, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize(("photometric", "expected"), [(0, [255, 1]), (1, [0, 254])])
def test_a_tiff_says_whether_its_smallest_value_is_white(photometric: int, expected: list[int]) -> None:
    pixels, first = struct.pack("<2H", 0, 0xFEFF), 12  # where the list of tags begins: after the head and the pixels
    tags = [(256, 2), (257, 1), (258, 16), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1), (279, 4)]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    content = struct.pack("<2sHI", b"II", 42, first) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert open_picture(content)[0, :, 0].tolist() == expected


def test_a_picture_that_memory_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(PngImageFile, "load", full)
    with pytest.raises(RequestError, match=r"image does not fit into memory: .* bytes; make it smaller first"):
        open_picture(stored(COLORS, "PNG"))


def test_inks_are_what_they_leave_of_white() -> None:
    inks = np.random.default_rng(7).integers(0, 256, (5, 7, 4), np.uint8)
    expected = (255.0 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
    found = open_picture(stored(Image.frombytes("CMYK", (7, 5), inks.tobytes()), "TIFF"))
    assert np.abs(found - expected).max() <= 1


def test_grey_black_and_white_and_a_single_pixel_are_pictures() -> None:
    assert open_picture(png(2, 1, 8, 0, [bytes([7, 200])])).tolist() == [[[7, 7, 7], [200, 200, 200]]]
    assert open_picture(png(2, 1, 1, 0, [bytes([0b01000000])])).tolist() == [[[0, 0, 0], [255, 255, 255]]]
    assert open_picture(png(1, 1, 8, 2, [bytes([1, 2, 3])])).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF"])
def test_of_several_frames_or_pages_the_first_is_taken_and_said_so(kind: str) -> None:
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    found = read_picture(stored(black, kind, save_all=True, append_images=[Image.fromarray(white)]), name="last_image")
    assert np.array_equal(found.pixels, black)
    assert found.notes == ("last_image has several frames or pages; the first is used",)


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "webm"])
def test_a_video_gives_its_last_frame(tmp_path: Path, ending: str) -> None:
    path = write_video(tmp_path / f"concat:a.{ending}", chunked(scene()), make_header())
    found = open_picture(path)
    assert np.array_equal(found, list(decoded_frames(path))[-1])
    assert np.array_equal(found, open_picture(path.read_bytes()))
    assert np.abs(found.astype(int) - scene()[-1]).mean() < 4 < np.abs(found.astype(int) - scene()[0]).mean()


def test_a_video_without_key_frames_near_its_end_gives_its_last_frame(tmp_path: Path) -> None:
    long = np.concatenate([scene(20), scene(20)[::-1]] * 8)  # one key frame in 250
    path = write_video(tmp_path / "a.mp4", chunked(long), make_header(len(long)))
    assert np.array_equal(open_picture(path), list(decoded_frames(path))[-1])


def test_a_video_of_a_format_that_lists_no_key_frames_gives_its_last_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=16, width=W, height=H, pix_fmt="yuv420p")
        for pixels in scene():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    assert np.array_equal(open_picture(path), list(decoded_frames(path))[-1])


def test_a_video_is_turned_as_it_says(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", chunked(scene()), make_header())
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, H << 16, 0, 1 << 30)
    assert np.array_equal(open_picture(bytes(content)), np.rot90(open_picture(path), -1))  # a quarter clockwise


def test_a_video_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.mp4", chunked(scene()), make_header()).read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # so FFmpeg would play what there is
    with pytest.raises(RequestError, match=r"image is not a picture or video that can be read: .* it is cut off"):
        open_picture(content[: content.index(b"mdat") + 100])


def test_sound_alone_is_no_picture(tmp_path: Path) -> None:
    with av.open(tmp_path / "a.mkv", "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(
        RequestError, match=r"not a picture or video that can be read: .*: it has no video, or one of an"
    ):
        open_picture(tmp_path / "a.mkv")


def test_size_is_judged_before_a_pixel_is_read() -> None:
    for width, height in ((12_000, 12_000), (100_000, 100_000), (1, 2**27 + 1)):
        with pytest.raises(RequestError, match=r"^image has .* pixels.*[Mm]ake it smaller"):
            open_picture(png(width, height, 8, 2, []))
    with pytest.raises(RequestError, match=r"^image is damaged"):  # as large as the largest cameras' are, and empty
        open_picture(png(11_656, 8_742, 8, 2, []))


REFUSED = {
    "nothing": (b"", "image is empty: it has no bytes"),
    "a text": (
        b"no picture",
        "image is not a picture or video that can be read: 10 bytes: FFmpeg knows no video in it",
    ),
    "a cut off picture": (
        stored(COLORS, "PNG")[:-40],
        "image is damaged, or of a kind that cannot be read: .*truncated",
    ),
    "a heif picture": (
        b"\0\0\0\x18ftypheic",
        "image is a HEIF picture, which cannot be read: .*save it as PNG or JPEG",
    ),
    "unknown white": (stored(Image.new("F", (2, 2)), "TIFF"), "image has pixels of 32 bits.*save it with 8 or 16 bits"),
    "a number": (3, r"image must be a path, the bytes of a picture file, or an array uint8 \[H, W, 3\]; got int"),
    "a PIL picture": (Image.new("RGB", (2, 2)), "got PIL.Image.Image. Of a PIL picture, give numpy.asarray"),
    "other numbers": (COLORS / 255, r"image must be an array uint8 .* 0 to 255; got float64 \[5, 7, 3\]"),
    "other axes": (COLORS[0], r"got uint8 \[7, 3\]"),
    "no pixels": (COLORS[:0], r"got uint8 \[0, 7, 3\]"),
    "an address": ("https://127.0.0.1/a.png", "is not there: 'https://127.0.0.1/a.png'.*Nothing is fetched"),
    "data": ("data:image/png;base64,AAAA", "image is not there: .*download it first"),
    "no path": ("a\0b", r"image is not a path: 'a\\x00b'"),
    "a long path": ("x" * 5000, "image is not readable: 'xxx.{197}[.]{3}': "),
    "no file": ("", "image is not there: ''"),
    "a device": ("/dev/zero", "image is not a regular file: '/dev/zero'; save it as a file first"),
}


@pytest.mark.parametrize("kind", ["PNG", "MKV"])
def test_the_pixels_of_several_pictures_count_together_before_the_next_is_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, (height, width, _) = 3, COLORS.shape
    file = stored(COLORS, "PNG") if kind == "PNG" else lossless(COLORS[None])
    monkeypatch.setattr("mutoscope.pictures.MOST_PIXELS", count * height * width)
    assert len(read_pictures([file] * count, name="reference_images")) == count
    with pytest.raises(RequestError, match=r"reference_images may have 105 pixels .* together; 7x5 more, of .* fewer"):
        read_pictures([file] * (count + 1), name="reference_images")


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_picture_is_refused_in_words(case: str) -> None:
    source, words = REFUSED[case]
    with pytest.raises(RequestError, match=words):
        open_picture(source)


def test_a_folder_an_empty_file_and_a_secret_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"image is a folder: .*; name one picture or video file"):
        open_picture(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(RequestError, match=r"image is empty: '.*empty.png'; give a picture or video file"):
        open_picture(tmp_path / "empty.png")
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for somebody who writes
    with pytest.raises(RequestError, match="image is not a regular file"):
        open_picture(tmp_path / "pipe")


@pytest.mark.parametrize("ending", ["m3u8", "mp4"])
def test_a_list_of_addresses_is_no_video_and_fetches_nothing(tmp_path: Path, ending: str) -> None:
    fetched = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError):  # once the server is closed
                while True:
                    server.accept()[0].close()
                    fetched.append(ending)

        Thread(target=answer, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        path = tmp_path / f"a.{ending}"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n")
        for source in (path, path.read_bytes()):
            with pytest.raises(RequestError, match="not a picture or video"):
                open_picture(source)
        server.shutdown(socket.SHUT_RDWR)
    assert fetched == []


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Cut off, or with a few other bytes, most of them near the start."""
    if chance.random() < 0.4:
        return content[: chance.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(chance.choice((1, 2, 8))):
        changed[chance.randrange(min(len(changed), chance.choice((30, 300, 30_000))))] = chance.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "QOI", "mp4"])
def test_a_damaged_file_is_a_picture_or_refused_and_nothing_else(tmp_path: Path, kind: str) -> None:
    if kind == "mp4":
        content = write_video(tmp_path / "a.mp4", chunked(scene()), make_header()).read_bytes()
    else:
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        content = stored(scene(1)[0], kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
    chance = random.Random(kind)
    outcomes: set[str] = set()
    for _ in range(60):
        try:
            picture = open_picture(damaged(content, chance))
            assert (picture.dtype, picture.ndim, picture.shape[2]) == (np.uint8, 3, 3)
            outcomes.add("read")
        except RequestError:
            outcomes.add("refused")
    assert "refused" in outcomes
