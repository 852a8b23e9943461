"""The cache with engines of a few bytes. Builders that are killed are in test_process.py."""

from __future__ import annotations

import json
import os
import stat
import threading
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from mutoscope_engines.cache.engine_cache import EngineCache, StoredEngine
from mutoscope_engines.cache.identity import EngineIdentity, ShapeRange
from mutoscope_engines.cache.record import EngineReport
from mutoscope_engines.errors import EngineError, EngineMissingError

from tests.engines.opened_files import opened_files

IDENTITY = EngineIdentity(
    files={"model.onnx": "a" * 64, "model.onnx.data": "b" * 64},
    precision="bf16",
    compute_capabilities=(89, 120),
    profile={"x": ShapeRange((1, 2), (4, 2), (8, 2))},
    library="tensorrt_rtx 1.7 linux-x86_64",
    flags=("REQUIRE_USER_ALLOCATION",),
)
WANTED = replace(IDENTITY, compute_capabilities=(89,), profile={"x": ShapeRange.exactly((8, 2))})


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines", key_path=tmp_path / "data" / "engine.key", limit_bytes=10**6)


def report(activation_bytes: int = 5) -> EngineReport:
    return EngineReport("denoiser", "rtx40", "bf16", activation_bytes, 6, 7, 8.0, 9)


def put(
    cache: EngineCache, identity: EngineIdentity = IDENTITY, content: bytes = b"engine", activations: int = 5
) -> None:
    with cache.reserve(identity) as slot:
        slot.partial.write_bytes(content)
        slot.publish(report(activations), sha256(content).hexdigest())


def load(cache: EngineCache, wanted: EngineIdentity) -> StoredEngine:
    return cache.load(cache.catalogue().find(wanted))


def test_what_was_published_is_loaded(cache: EngineCache):
    put(cache, content=b"the engine")
    engine = load(cache, WANTED)
    assert engine.data[:] == b"the engine"
    assert engine.record.identity == IDENTITY
    assert engine.record.report == report()


def test_a_second_builder_finds_what_the_first_built(cache: EngineCache):
    put(cache)
    with cache.reserve(IDENTITY) as slot:
        assert slot.record is not None
        assert slot.record.report == report()


def test_an_engine_that_is_built_again_replaces_the_first(cache: EngineCache):
    put(cache, content=b"first")
    first = load(cache, WANTED)
    put(cache, content=b"second")
    assert first.data[:] == b"first"  # whoever has it keeps it
    assert load(cache, WANTED).data[:] == b"second"
    assert len(list(cache.folder.glob("*.engine"))) == 1


def test_a_slot_that_is_left_without_publishing_leaves_nothing(cache: EngineCache):
    with pytest.raises(KeyboardInterrupt), cache.reserve(IDENTITY) as slot:
        slot.partial.write_bytes(b"half an eng")
        raise KeyboardInterrupt
    assert list(cache.folder.iterdir()) == []
    with pytest.raises(EngineMissingError, match="has not built any"):
        load(cache, WANTED)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (replace(WANTED, files={**IDENTITY.files, "model.onnx.data": "c" * 64}), "files: model.onnx.data changed"),
        (replace(WANTED, precision="fp8"), "precision: bf16, not fp8"),
        (replace(WANTED, library="tensorrt_rtx 1.8"), "library: tensorrt_rtx 1.7 linux-x86_64, not tensorrt_rtx 1.8"),
        (replace(WANTED, compute_capabilities=(86,)), r"compute_capabilities: \[89, 120\], without \[86\]"),
        (replace(WANTED, profile={"x": ShapeRange.exactly((9, 2))}), r"profile: x takes \[1, 2\] to \[8, 2\], not \[9"),
        (replace(WANTED, profile={"y": ShapeRange.exactly((1,))}), "profile: y is no input"),
        (replace(WANTED, flags=("WEIGHT_STREAMING",)), "flags: without WEIGHT_STREAMING"),
    ],
)
def test_a_miss_says_which_component_of_the_nearest_differs(cache: EngineCache, wanted: EngineIdentity, why: str):
    put(cache)
    put(cache, replace(IDENTITY, files={}, library="other", precision="other"))
    with pytest.raises(EngineMissingError, match=why):
        load(cache, wanted)


def test_of_several_that_serve_the_one_with_the_least_memory_is_loaded(cache: EngineCache):
    put(cache, content=b"large", activations=100)
    put(cache, replace(IDENTITY, compute_capabilities=(89,)), content=b"small", activations=10)
    assert load(cache, WANTED).data[:] == b"small"


@pytest.mark.parametrize("content", [b"", b"engin", b"Engine", b"engine and more"])
def test_an_engine_whose_content_changed_is_never_loaded_and_is_built_again(cache: EngineCache, content: bytes):
    put(cache)
    (path,) = cache.folder.glob(f"{IDENTITY.digest}.*.engine")
    path.write_bytes(content)
    with pytest.raises(EngineMissingError, match=r"damaged|cannot be read"):
        load(cache, WANTED)
    with cache.reserve(IDENTITY) as slot:
        assert slot.record is None


def test_an_engine_of_another_installation_is_not_loaded(cache: EngineCache, tmp_path: Path):
    put(cache)
    other = EngineCache(cache.folder, key_path=tmp_path / "other" / "engine.key")
    put(other, replace(IDENTITY, precision="fp16"))  # which makes its key
    with pytest.raises(EngineMissingError):
        load(other, WANTED)
    assert load(cache, WANTED).data[:] == b"engine"


def test_a_record_changed_to_name_another_engine_is_not_believed(cache: EngineCache):
    put(cache)
    evil = sha256(b"evil").hexdigest()
    path = cache.folder / f"{IDENTITY.digest}.json"
    signed = json.loads(path.read_text())
    signed["record"]["sha256"] = evil
    path.write_text(json.dumps(signed))
    (cache.folder / f"{IDENTITY.digest}.{evil[:16]}.engine").write_bytes(b"evil")
    with pytest.raises(EngineMissingError):
        load(cache, WANTED)


def test_a_record_under_the_name_of_another_is_not_believed(cache: EngineCache):
    put(cache)
    for path in list(cache.folder.iterdir()):
        path.rename(path.with_name(path.name.replace(IDENTITY.digest, "0" * 64)))
    assert cache.catalogue().records == ()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"record": 1, "signature": 2}', b"[" * 10**5])
def test_a_damaged_record_is_as_none(cache: EngineCache, content: bytes):
    put(cache)
    (cache.folder / f"{IDENTITY.digest}.json").write_bytes(content)
    assert cache.catalogue().records == ()


def test_a_catalogue_reads_each_record_once_however_often_it_is_asked(cache: EngineCache):
    for name in "abc":
        put(cache, replace(IDENTITY, flags=(name,)))
    with opened_files(cache.folder) as opened:
        catalogue = cache.catalogue()
        for name in "abc" * 20:
            assert catalogue.find(replace(WANTED, flags=(name,))).identity.flags == (name,)
        with pytest.raises(EngineMissingError):
            catalogue.find(replace(WANTED, flags=("d",)))
    assert sorted(opened) == sorted(path.name for path in cache.folder.glob("*.json"))


def test_an_engine_that_went_after_the_catalogue_was_read_is_missing(cache: EngineCache):
    put(cache)
    record = cache.catalogue().find(WANTED)
    cache.limit_bytes = 1
    assert cache.trim() == 1
    with pytest.raises(EngineMissingError, match="cannot be read"):
        cache.load(record)


def test_files_and_folders_are_the_owners_alone(cache: EngineCache, tmp_path: Path):
    put(cache)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [cache.folder, *tmp_path.glob("*/*")]}
    assert [path for path, mode in modes.items() if mode & 0o077] == []


def test_a_cache_that_others_can_write_to_is_refused(cache: EngineCache):
    put(cache)
    cache.folder.chmod(0o777)
    with pytest.raises(EngineError, match="chmod 700"):
        load(cache, WANTED)


def test_a_key_that_others_can_read_is_refused(cache: EngineCache, tmp_path: Path):
    put(cache)
    (tmp_path / "data" / "engine.key").chmod(0o644)
    with pytest.raises(EngineError, match="mode 600"):
        load(cache, WANTED)


def test_beyond_the_limit_the_least_recently_used_go(cache: EngineCache):
    identities = [replace(IDENTITY, flags=(name,)) for name in "abc"]
    for at, identity in enumerate(identities):
        put(cache, identity, content=b"x" * 300_000)
        os.utime(cache.folder / f"{identity.digest}.json", (at, at))
    load(cache, replace(WANTED, flags=("a",)))  # now the most recent
    cache.limit_bytes = 700_000
    assert cache.trim() == 1
    assert {record.identity.flags for record in cache.catalogue().records} == {("a",), ("c",)}
    assert cache.size_bytes() <= 700_000


def test_what_was_just_built_stays_whatever_the_limit(cache: EngineCache):
    put(cache)
    cache.limit_bytes = 1
    assert cache.trim(keep=[IDENTITY.digest]) == 0
    assert load(cache, WANTED)


def test_trimming_removes_what_dead_builds_left_and_nothing_of_living_ones(cache: EngineCache):
    put(cache)
    dead = "d" * 64
    for name in (f"{dead}.lock", f"{dead}.x.partial", f"{dead}.content.engine"):  # killed between its two renames
        (cache.folder / name).write_bytes(b"left")
    living = replace(IDENTITY, precision="fp16")
    with cache.reserve(living) as slot:
        cache.trim()
        assert slot.partial.exists()
        assert not list(cache.folder.glob(f"{dead}*"))
    assert load(cache, WANTED)


def test_of_two_builders_the_second_waits_and_builds_nothing(cache: EngineCache):
    inside, found = threading.Event(), []

    def second() -> None:
        inside.wait()
        with cache.reserve(IDENTITY) as slot:
            found.append(slot.record)

    waiting = threading.Thread(target=second)
    waiting.start()
    with cache.reserve(IDENTITY) as slot:
        inside.set()
        waiting.join(0.2)
        assert waiting.is_alive()
        slot.partial.write_bytes(b"engine")
        record = slot.publish(report(), sha256(b"engine").hexdigest())
    waiting.join()
    assert found == [record]


def test_many_builders_of_one_engine_agree(cache: EngineCache):
    """Each removes the lock's file when it is done, while others wait on it."""
    built, lock = [], threading.Lock()

    def build() -> None:
        with cache.reserve(IDENTITY) as slot:
            if slot.record is None:
                assert lock.acquire(blocking=False)  # nobody else is in here
                slot.partial.write_bytes(b"engine")
                built.append(slot.publish(report(), sha256(b"engine").hexdigest()))
                lock.release()

    threads = [threading.Thread(target=build) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert sorted(path.suffix for path in cache.folder.iterdir()) == [".engine", ".json"]


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MUTOSCOPE_CACHE", str(tmp_path / "mine"))
    assert EngineCache().folder == tmp_path / "mine" / "engines"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "much"])
def test_a_limit_that_is_no_size_is_refused(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("MUTOSCOPE_CACHE_GB", value)
    with pytest.raises(EngineError, match="positive number of gigabytes"):
        EngineCache()
