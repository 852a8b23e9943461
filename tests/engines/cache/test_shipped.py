"""Engines of a few bytes that travel: what is trusted, what is refused, and what a second shipping keeps."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from mutoscope_engines.cache.engine_cache import EngineCache
from mutoscope_engines.cache.identity import EngineIdentity, ShapeRange
from mutoscope_engines.cache.record import EngineRecord, EngineReport
from mutoscope_engines.cache.shipped import INDEX, ShippedEngines, index_sha256, ship
from mutoscope_engines.errors import EngineError, EngineMissingError

IDENTITY = EngineIdentity(
    files={"model.onnx": "a" * 64},
    precision="bf16",
    compute_capabilities=(89, 120),
    profile={"x": ShapeRange((1, 2), (4, 2), (8, 2))},
    library="tensorrt_rtx 1.7 linux-x86_64",
    flags=(),
)
OTHER = replace(IDENTITY, precision="fp8")
WANTED = replace(IDENTITY, compute_capabilities=(89,))


def cache_of(folder: Path) -> EngineCache:
    return EngineCache(folder / "engines", key_path=folder / "engine.key")


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return cache_of(tmp_path / "here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    return tmp_path / "bundle" / "engines"


def put(cache: EngineCache, identity: EngineIdentity = IDENTITY, content: bytes = b"engine") -> EngineRecord:
    with cache.reserve(identity) as slot:
        slot.partial.write_bytes(content)
        report = EngineReport("denoiser", "rtx40", identity.precision, 5, 6, 7, 8.0, 9)
        return slot.publish(report, sha256(content).hexdigest())


def test_they_load_by_the_hash_of_their_index_without_the_cache_and_key_of_who_built_them(
    cache: EngineCache, folder: Path, tmp_path: Path
) -> None:
    records = [put(cache), put(cache, OTHER, b"another engine")]
    pin = ship(records, cache, folder)
    assert pin == sha256((folder / INDEX).read_bytes()).hexdigest() == index_sha256(folder)
    moved = tmp_path / "elsewhere"
    folder.parent.rename(moved)
    for path in sorted((tmp_path / "here").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    there = ShippedEngines.open(moved / "engines", ["0" * 64, pin])
    assert there.load(there.catalogue.find(WANTED)).data[:] == b"engine"
    assert there.load(there.catalogue.find(OTHER)).data[:] == b"another engine"
    with pytest.raises(
        EngineMissingError, match=r"differs in library: tensorrt_rtx 1.7 linux-x86_64, not tensorrt_rtx 1.8"
    ):
        there.catalogue.find(replace(WANTED, library="tensorrt_rtx 1.8 linux-x86_64"))


def edited(change: Callable[[Any], Any]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        said = json.loads((folder / INDEX).read_text())
        (folder / INDEX).write_text(json.dumps(change(said) or said))

    return edit


@pytest.mark.parametrize(
    "change",
    [
        edited(lambda said: said["engines"][0].update(sha256="0" * 64)),
        edited(lambda said: said["engines"][0]["report"].update(activation_bytes=1)),
        lambda folder: (folder / INDEX).write_bytes((folder / INDEX).read_bytes() + b" "),
        lambda folder: (folder / INDEX).write_bytes(b""),
    ],
    ids=["another engine", "another figure", "a space", "nothing"],
)
def test_an_index_that_was_changed_is_refused_and_nothing_loads(
    cache: EngineCache, folder: Path, change: Callable[[Path], object]
) -> None:
    pin = ship([put(cache)], cache, folder)
    change(folder)
    found = sha256((folder / INDEX).read_bytes()).hexdigest()
    with pytest.raises(EngineError, match=rf"has the SHA-256 {found}, and engines_sha256 is {pin}\. No engine"):
        ShippedEngines.open(folder, [pin])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edited(lambda said: said.update(format_version=2)), "its format version is 2; this Mutoscope reads 1"),
        (edited(lambda said: said["engines"][0].update(sha256="../../engine")), "a hash of an engine is none"),
        (edited(lambda said: said["engines"][0].pop("identity")), "cannot be used"),
        (edited(lambda said: said["engines"][0]["report"].update(more=1)), "cannot be used"),
        (edited(lambda said: [said]), "cannot be used"),
        (lambda folder: (folder / INDEX).write_bytes(b"\xff"), "cannot be used"),
        (lambda folder: (folder / INDEX).write_bytes(b"[" * 100_000), "cannot be used"),
    ],
)  # fmt: skip
def test_an_index_that_is_trusted_and_damaged_is_refused_in_words(
    cache: EngineCache, folder: Path, change: Callable[[Path], object], message: str
) -> None:
    ship([put(cache)], cache, folder)
    change(folder)
    with pytest.raises(EngineError, match=message):
        ShippedEngines.open(folder, [str(index_sha256(folder))])


@pytest.mark.parametrize("content", [b"Engine", b"engine and more", b"", None])
def test_an_engine_that_was_changed_or_has_gone_does_not_load(
    cache: EngineCache, folder: Path, content: bytes | None
) -> None:
    record = put(cache)
    there = ShippedEngines.open(folder, [ship([record], cache, folder)])
    [path] = folder.glob("*.engine")
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(EngineMissingError, match=r"is damaged and was not loaded|cannot be read"):
        there.load(record)


def test_a_link_in_the_place_of_an_engine_is_not_followed(cache: EngineCache, folder: Path, tmp_path: Path) -> None:
    record = put(cache)
    there = ShippedEngines.open(folder, [ship([record], cache, folder)])
    [path] = folder.glob("*.engine")
    path.rename(tmp_path / "the same")
    path.symlink_to(tmp_path / "the same")
    with pytest.raises(EngineMissingError, match="cannot be read"):
        there.load(record)


@pytest.mark.skipif(sys.platform == "win32", reason="its files have no mode")
@pytest.mark.parametrize("mode", [0o666, 0o664])
def test_of_an_engine_that_others_may_write_to_the_bytes_that_were_checked_are_handed_out(
    cache: EngineCache, folder: Path, mode: int
) -> None:
    record = put(cache)
    there = ShippedEngines.open(folder, [ship([record], cache, folder)])
    [path] = folder.glob("*.engine")
    path.chmod(mode)
    data = there.load(record).data
    with path.open("r+b") as file:
        file.write(b"wicked")
    assert data[:] == b"engine"


def test_without_an_index_the_pin_is_refused_with_what_to_do(folder: Path) -> None:
    with pytest.raises(EngineError, match=r"has no index.json .* Leave engines_sha256 out, or build them with into_b"):
        ShippedEngines.open(folder, ["0" * 64])
    assert index_sha256(folder) is None


def test_shipping_again_keeps_what_this_installation_built_and_nothing_else(
    cache: EngineCache, folder: Path, tmp_path: Path
) -> None:
    stranger = cache_of(tmp_path / "stranger")
    ship([put(stranger, replace(IDENTITY, flags=("X",)), b"of a stranger")], stranger, folder)
    (folder / f"{'0' * 64}.partial").write_bytes(b"of a build that was killed")
    first = ship([put(cache)], cache, folder)
    both = ship([put(cache, OTHER, b"second")], cache, folder)
    there = ShippedEngines.open(folder, [both])
    assert {there.load(record).data[:] for record in there.catalogue.records} == {b"engine", b"second"}
    for path in cache.folder.iterdir():
        path.unlink()  # as a cache that is full makes room
    assert first != both == ship([put(cache)], cache, folder)
    names = {f"{sha256(content).hexdigest()}.engine" for content in (b"engine", b"second")}
    assert set(os.listdir(folder)) == {INDEX, "index.signature", *names}


def test_engines_of_equal_content_all_stay_in_the_index(cache: EngineCache, folder: Path) -> None:
    there = ShippedEngines.open(folder, [ship([put(cache), put(cache, OTHER)], cache, folder)])
    assert [there.load(there.catalogue.find(identity)).data[:] for identity in (IDENTITY, OTHER)] == [b"engine"] * 2
