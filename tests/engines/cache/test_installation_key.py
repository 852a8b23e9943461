from __future__ import annotations

import threading
from pathlib import Path

import pytest
from mutoscope_engines.cache.installation_key import is_signed, make_key, read_key, sign
from mutoscope_engines.errors import EngineError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "mutoscope" / "engine.key"


def test_of_many_that_make_the_key_at_once_all_have_the_same(path: Path):
    keys: list[bytes] = []
    together = threading.Barrier(16)

    def make() -> None:
        together.wait()
        keys.append(make_key(path))

    threads = [threading.Thread(target=make) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(keys) == {read_key(path)} and len(keys) == 16
    assert [file.name for file in path.parent.iterdir()] == ["engine.key"]


def test_two_installations_have_two_keys_and_do_not_trust_each_other(path: Path, tmp_path: Path):
    mine, theirs = make_key(path), make_key(tmp_path / "other.key")
    assert is_signed(b"content", sign(b"content", mine), mine)
    assert not is_signed(b"content", sign(b"content", theirs), mine)
    assert not is_signed(b"contents", sign(b"content", mine), mine)


def test_a_key_is_not_read_through_a_link(path: Path, tmp_path: Path):
    make_key(path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(EngineError, match="cannot be read"):
        read_key(tmp_path / "link")


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_key_of_another_length_is_refused(path: Path, content: bytes):
    make_key(path)
    path.write_bytes(content)
    with pytest.raises(EngineError, match="damaged"):
        read_key(path)


def test_where_there_is_no_key_none_is_made_by_reading(path: Path):
    assert read_key(path) is None
    assert not path.exists()
