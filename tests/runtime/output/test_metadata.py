"""What files tell everybody, as FFmpeg, Pillow and an XML parser read it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import av
import pytest
from mutoscope.errors import RequestError
from mutoscope.output.frames import VideoHeader
from mutoscope.output.metadata import LEVELS, at_level
from mutoscope.output.video import check_output, write_video
from mutoscope.provenance.tag import has_tag, xmp
from PIL import Image

from tests.runtime.clips import chunked, make_header, scene

# IPTC's own addresses of the terms, in the vocabulary https://cv.iptc.org/newscodes/digitalsourcetype/.
TERM = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
WITH_FOOTAGE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
IPTC_EXTENSION = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
CONTAINERS = ["out.mp4", "out.mov", "out.mkv", "out.webm"]
PICTURES = ["out.webp", "out.png"]
HASH = "0123456789abcdef" * 4


def written(folder: Path, name: str, level: str = "minimal") -> Path:
    count = 1 if name.endswith(".png") else 9
    plan = {"mutoscope": "1", "prompt": "a cat & a <dog>", "bundle_sha256": HASH, "seed": 7, "height": 32}
    header = make_header(count)
    header = VideoHeader(
        height=header.height, width=header.width, num_frames=count, fps=header.fps, title="a cat & a <dog>",
        recipe=json.dumps(plan),
    )  # fmt: skip
    return write_video(folder / name, chunked(scene(count)), header, metadata=level)


def container_tags(path: Path) -> dict[str, str]:
    with av.open(str(path)) as container:
        return {name.lower(): value for name, value in container.metadata.items()}


def xmp_of_picture(path: Path) -> bytes:
    with Image.open(path) as image:
        found: Any = image.info.get("xmp") or image.info["XML:com.adobe.xmp"]
    return found if isinstance(found, bytes) else str(found).encode()


def place_of_xmp_in_gif(content: bytes) -> slice:
    start = content.index(b"\x21\xff\x0bXMP DataXMP") + 14
    return slice(start, content.index(b"\x01\xff\xfe\xfd", start))


def source_type(packet: bytes) -> str | None:
    root = ElementTree.fromstring(packet.decode().removeprefix("\ufeff"))
    found = root.find(f".//{IPTC_EXTENSION}DigitalSourceType")
    return None if found is None else found.text


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_says_at_every_level_that_it_is_ai_generated(tmp_path: Path, name: str, level: str) -> None:
    path = written(tmp_path, name, level)
    tags = container_tags(path)
    assert tags["genre" if name == "out.mov" else "description"] == f"AI-generated: {TERM}"
    assert has_tag(path)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_says_so_in_xmp(tmp_path: Path, name: str, level: str) -> None:
    path = written(tmp_path, name, level)
    assert source_type(xmp_of_picture(path)) == TERM
    assert has_tag(path)
    with Image.open(path) as image:
        assert name == "out.webp" or image.info["Description"] == f"AI-generated: {TERM}"


@pytest.mark.parametrize("level", LEVELS)
def test_a_gif_says_so_in_a_comment_and_in_xmp(tmp_path: Path, level: str) -> None:
    content = written(tmp_path, "out.gif", level).read_bytes()
    words = f"AI-generated: {TERM}".encode()
    assert content.count(b"\x21\xfe" + bytes([len(words)]) + words + b"\0") == 1
    place = place_of_xmp_in_gif(content)
    assert source_type(content[place]) == TERM
    # A reader that knows only blocks gets past the packet, wherever it comes out of it.
    for first in range(place.start, place.stop):
        at = first
        while content[at]:
            at += content[at] + 1
        assert content[at + 1 : at + 3] == b"\x21\xfe"


@pytest.mark.parametrize("name", ["out.mp4", "out.mov"])
def test_an_mp4_says_so_in_xmp_in_the_last_box_of_the_file(tmp_path: Path, name: str) -> None:
    content, at, boxes = written(tmp_path, name).read_bytes(), 0, []
    while at < len(content):
        size = int.from_bytes(content[at : at + 4])
        boxes.append((content[at + 4 : at + 8], content[at + 8 : at + size]))
        at += size
    kind, body = boxes[-1]
    assert at == len(content) and kind == b"uuid"
    assert body[:16].hex() == "be7acfcb97a942e89c71999491e3afac"
    assert source_type(body[16:]) == TERM


def test_every_picture_of_a_folder_says_so(tmp_path: Path) -> None:
    folder = written(tmp_path, "frames", "none")
    for picture in folder.iterdir():
        assert source_type(xmp_of_picture(picture)) == TERM
    assert has_tag(folder)
    (folder / "other.png").write_bytes(b"a picture from elsewhere")
    assert not has_tag(folder)


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_prompt_is_in_a_container_at_full_alone(tmp_path: Path, name: str) -> None:
    tags = container_tags(written(tmp_path, name, "full"))
    assert (tags["title"], json.loads(tags["comment"])["prompt"]) == ("a cat & a <dog>", "a cat & a <dog>")
    tags = container_tags(written(tmp_path, name, "minimal"))
    assert json.loads(tags["comment"]) == {"mutoscope": "1", "bundle_sha256": HASH, "seed": 7} and "title" not in tags
    assert not {"title", "comment"} & container_tags(written(tmp_path, name, "none")).keys()


@pytest.mark.parametrize("name", [*CONTAINERS, *PICTURES, "out.gif", "frames", "out.npy"])
@pytest.mark.parametrize(("level", "left_out"), [("minimal", [b"cat"]), ("none", [b"cat", b"012345"])])
def test_no_byte_tells_what_a_level_leaves_out(tmp_path: Path, name: str, level: str, left_out: list[bytes]) -> None:
    path = written(tmp_path, name, level)
    content = b"".join(file.read_bytes() for file in sorted(path.iterdir())) if path.is_dir() else path.read_bytes()
    assert [fact for fact in left_out if fact in content] == []


def test_webp_keeps_the_whole_plan_in_xmp(tmp_path: Path) -> None:
    packet = ElementTree.fromstring(xmp_of_picture(written(tmp_path, "out.webp", "full")).decode().lstrip("\ufeff"))
    texts = [each.text or "" for each in packet.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li")]
    assert texts[:2] == [f"AI-generated: {TERM}", "a cat & a <dog>"]
    assert json.loads(texts[2])["prompt"] == "a cat & a <dog>"


def test_a_webp_of_one_frame_says_so_too(tmp_path: Path) -> None:
    path = write_video(tmp_path / "out.webp", iter([scene(1)]), make_header(1))
    assert source_type(xmp_of_picture(path)) == TERM
    with Image.open(path) as image:
        assert image.size == (48, 32) and image.convert("RGB").getpixel((4, 16)) == pytest.approx((220, 30, 25), abs=12)


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_plays_a_container_is_not_changed_by_its_level(tmp_path: Path, name: str) -> None:
    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(video=0)]

    full, none = (packets(written(tmp_path, f"{level}-{name}", level)) for level in ("full", "none"))
    assert full == none


def test_the_words_are_found_across_the_parts_in_which_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long"
    for before in ((1 << 20) - 40, (1 << 20) + 7):
        path.write_bytes(bytes(before) + f"AI-generated: {TERM}".encode() + bytes(99))
        assert has_tag(path)
    path.write_bytes(bytes(3 << 20))
    assert not has_tag(path)


@pytest.mark.parametrize("recipe", ["", "free text", "[7]", '{"prompt": "a cat"}'])
def test_minimal_keeps_nothing_of_a_recipe_that_has_none_of_its_facts(recipe: str) -> None:
    header = VideoHeader(height=2, width=2, num_frames=1, fps=make_header().fps, title="a cat", recipe=recipe)
    assert (at_level(header, "minimal").title, at_level(header, "minimal").recipe) == ("", "")
    assert at_level(header, "full") == header


@pytest.mark.parametrize("name", [*CONTAINERS, *PICTURES, "out.gif", "frames"])
def test_a_file_with_footage_in_it_says_that_not_all_of_it_was_made(tmp_path: Path, name: str) -> None:
    count = 1 if name.endswith(".png") else 9
    header = replace(make_header(count), has_footage=True)
    path = write_video(tmp_path / name, chunked(scene(count)), header, metadata="none")
    assert has_tag(path)
    path = path / "frame_00003.png" if name == "frames" else path
    if name in CONTAINERS:
        assert f"AI-generated: {WITH_FOOTAGE}" in container_tags(path).values()
    elif name == "out.gif":
        assert source_type((content := path.read_bytes())[place_of_xmp_in_gif(content)]) == WITH_FOOTAGE
    else:
        assert source_type(xmp_of_picture(path)) == WITH_FOOTAGE
    assert TERM.encode() not in path.read_bytes()


def test_an_unknown_level_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no metadata level 'ful'; did you mean full"):
        check_output(tmp_path / "out.mp4", metadata="ful")
    with pytest.raises(RequestError, match="metadata level"):
        write_video(tmp_path / "out.mp4", iter([]), make_header(), metadata="all")
    assert os.listdir(tmp_path) == []


def test_a_packet_of_xmp_is_wellformed_whatever_it_holds() -> None:
    assert source_type(xmp("a < b & c", '{"a": "<"}')) == TERM
