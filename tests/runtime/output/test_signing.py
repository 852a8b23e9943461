"""What is written is signed where it can be, with the hash it had before, and nothing is left that does not fit."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from mutoscope.errors import BackendUnavailableError, OutputError, ProvenanceError, RequestError
from mutoscope.output.video import check_output, write_file

pytest.importorskip("c2pa")

from mutoscope.provenance.keys import Signer, default_path, make_signer
from mutoscope.provenance.signature import TRUSTED, VALID, check

from tests.runtime.clips import chunked, leftovers, make_header, pillow_frames, scene


@pytest.fixture(autouse=True)
def signed(unsigned: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As it is with c2pa-python, and with a data folder of the test's own."""
    monkeypatch.setattr("mutoscope.output.signing.is_available", lambda: True)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.gif", "out.webp"])
def test_a_file_is_signed_and_keeps_the_hash_of_what_was_signed(folder: Path, name: str) -> None:
    plain = write_file(folder / name, chunked(scene()), make_header(), sign="off")
    assert plain.sha256 == plain.content_sha256 and plain.layers["signature"].detail == "turned off"
    for _ in range(2):  # two signatures differ; what was signed does not
        file = write_file(folder / name, chunked(scene()), make_header())
        assert file.content_sha256 == plain.sha256 != file.sha256
    content = file.path.read_bytes()
    assert (file.sha256, file.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    verdict = check(file.path, [make_signer(default_path()).root])
    assert verdict.state == TRUSTED and verdict.facts is not None
    assert verdict.facts["content_sha256"] == plain.sha256
    assert (file.layers["signature"].detail, file.sidecar) == ("in the file", None)
    assert leftovers(folder) == [name]


@pytest.mark.parametrize(
    ("level", "made"), [("full", {"mutoscope", "prompt", "seed"}), ("minimal", {"mutoscope", "seed"})]
)
def test_a_signature_says_no_more_than_the_metadata(folder: Path, level: str, made: set[str]) -> None:
    facts = check(write_file(folder / "out.mp4", chunked(scene()), make_header(), metadata=level).path).facts
    assert facts is not None and set(facts["made"]) == made
    facts = check(write_file(folder / "out.mp4", chunked(scene()), make_header(), metadata="none").path).facts
    assert facts is not None and "made" not in facts


@pytest.mark.parametrize("name", ["out.webm", "out.mkv", "out.npy"])
def test_a_format_that_cannot_hold_it_has_it_beside_it(folder: Path, name: str) -> None:
    file = write_file(folder / name, chunked(scene()), make_header())
    assert leftovers(folder) == [name, f"{name}.c2pa"] and file.sidecar == folder / f"{name}.c2pa"
    assert file.sha256 == file.content_sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()
    assert check(file.path).state == VALID
    assert file.to_dict()["sidecar"] == str(file.sidecar)
    write_file(folder / name, chunked(scene(3)), make_header(3))
    assert check(file.path).state == VALID and len(leftovers(folder)) == 2
    write_file(folder / name, chunked(scene(3)), make_header(3), sign="off")
    assert leftovers(folder) == [name]


def test_every_picture_of_a_folder_is_signed(folder: Path) -> None:
    file = write_file(folder / "frames", chunked(scene()), make_header(), metadata="full")
    pictures = sorted(file.path.glob("*.png"))
    assert len(pictures) == 9 and {check(picture).state for picture in pictures} == {VALID}
    assert leftovers(file.path) == [*(picture.name for picture in pictures), "plan.json"]
    assert np.array_equal(np.concatenate([pillow_frames(picture) for picture in pictures]), scene())
    assert file.sha256 != file.content_sha256


def test_a_signer_of_the_callers_own_signs(folder: Path) -> None:
    local = make_signer(default_path())
    default_path().unlink()
    file = write_file(folder / "out.mp4", chunked(scene()), make_header(), sign=Signer(local.chain, local.key))
    assert check(file.path, [local.root]).state == TRUSTED and not default_path().exists()


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "frames"])
def test_a_video_that_cannot_be_signed_is_kept_and_the_old_one_too(folder: Path, name: str) -> None:
    def gone(content: bytes) -> bytes:
        raise ConnectionError("the HSM does not answer")

    signer = Signer(make_signer(default_path()).chain, gone)
    if name != "frames":
        (folder / name).write_bytes(b"an older video")
    with pytest.raises(ProvenanceError, match=r"cannot be signed.* in .*-unsigned-\w{6}.*, not signed"):
        write_file(folder / name, chunked(scene()), make_header(), sign=signer)
    stem, _, ending = name.partition(".")
    kept = next(each for each in leftovers(folder) if each.startswith(f"{stem}-unsigned-") and each.endswith(ending))
    assert sorted([kept, *([name] if name != "frames" else [])]) == leftovers(folder)
    assert name == "frames" or (folder / name).read_bytes() == b"an older video"


def test_where_no_key_can_be_kept_a_video_is_made_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/proc/nothing")
    layer = write_file(folder / "out.mp4", chunked(scene()), make_header()).layers["signature"]
    assert not layer.present and layer.detail.startswith("the key cannot be kept in /proc/nothing/")
    with pytest.raises(OutputError, match="cannot be written"):
        check_output(folder / "out.mp4", sign="on")


def test_a_user_without_a_home_has_no_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise BackendUnavailableError("this user has no home folder")

    monkeypatch.setattr("mutoscope.output.signing.default_path", nowhere)
    layer = write_file(folder / "out.mp4", chunked(scene()), make_header()).layers["signature"]
    assert (layer.present, layer.detail) == (False, "this user has no home folder")
    with pytest.raises(BackendUnavailableError, match="no home"):
        check_output(folder / "out.mp4", sign="on")


def test_a_key_that_others_can_read_stops_it_before_any_work(folder: Path) -> None:
    make_signer(default_path())
    default_path().chmod(0o644)
    with pytest.raises(ProvenanceError, match="no one else may open it"):
        check_output(folder / "out.mp4")


def test_without_c2pa_a_file_is_not_signed_and_one_that_must_be_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mutoscope.output.signing.is_available", lambda: False)
    layer = write_file(folder / "out.webm", chunked(scene()), make_header()).layers["signature"]
    assert not layer.present and "pip install 'mutoscope[provenance]'" in layer.detail
    with pytest.raises(BackendUnavailableError, match="pip install"):
        check_output(folder / "out.mp4", sign="on")
    assert os.listdir(folder) == ["out.webm"]


def test_what_is_no_way_to_sign_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match="no way to sign 'of'; did you mean off"):
        check_output(folder / "out.mp4", sign="of")


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX's links")
def test_a_sidecar_that_cannot_be_written_is_found_before_any_work(folder: Path) -> None:
    (folder / "out.webm.c2pa").mkdir()
    with pytest.raises(OutputError, match=r"out\.webm\.c2pa is a folder"):
        check_output(folder / "out.webm")
