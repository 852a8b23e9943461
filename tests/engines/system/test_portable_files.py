"""Files on Linux, and what can be told of Windows there: by its name, and by errors that it would give."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
from mutoscope_engines.cache.engine_cache import EngineCache
from mutoscope_engines.cache.installation_key import make_key, read_key
from mutoscope_engines.system import portable_files


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No owner ids, no way to say that links are not followed, and folders that cannot be opened."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "getuid")
    monkeypatch.delattr(os, "O_NOFOLLOW")
    open_ = os.open

    def open_a_file(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return open_(path, flags, mode)

    monkeypatch.setattr(os, "open", open_a_file)


def in_use(times: int, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The system refuses so many times, as Windows does while another process has the file open."""
    left, whole = [PermissionError(13, "in use")] * times, getattr(os, name)

    def refusing(*arguments: object, **options: object) -> None:
        if left:
            raise left.pop()
        whole(*arguments, **options)

    monkeypatch.setattr(os, name, refusing)


@pytest.mark.parametrize(("mode", "ours"), [(0o600, True), (0o644, True), (0o620, False), (0o602, False)])
def test_a_file_that_others_can_write_to_is_not_ours(tmp_path: Path, mode: int, ours: bool) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(mode)
    assert portable_files.is_ours((tmp_path / "file").stat(), without=0o022) is ours


def test_a_file_of_another_user_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = tmp_path.stat()
    monkeypatch.setattr(os, "getuid", lambda: facts.st_uid + 1)
    assert not portable_files.is_ours(facts, without=0)


@pytest.mark.usefixtures("windows")
def test_on_windows_owners_and_modes_say_nothing(tmp_path: Path) -> None:
    facts = os.stat_result((stat.S_IFREG | 0o666, 0, 0, 1, 0, 0, 0, 0, 0, 0))  # what it says of every file
    assert portable_files.is_ours(facts, without=0o077)


def test_what_is_read_stays_readable_when_the_file_is_gone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"engine")
    data = portable_files.content(tmp_path / "file")
    (tmp_path / "file").unlink()
    assert data[:] == b"engine"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        portable_files.content(tmp_path / "file")


@pytest.mark.usefixtures("windows")
def test_on_windows_what_was_read_does_not_change_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"engine")
    data = portable_files.content(tmp_path / "file")
    with (tmp_path / "file").open("rb+") as file:
        file.write(b"others")
    assert data[:] == b"engine"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        portable_files.content(tmp_path / "file")


@pytest.mark.usefixtures("windows")
def test_on_windows_a_folder_is_not_synced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    portable_files.sync(tmp_path / "file")
    portable_files.sync(tmp_path)


@pytest.mark.usefixtures("windows")
def test_on_windows_a_file_that_is_open_for_a_moment_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "old").write_bytes(b"old")
    in_use(2, monkeypatch, "replace")
    portable_files.replace(tmp_path / "new", tmp_path / "old", pauses=(0.0, 0.0))
    assert (tmp_path / "old").read_bytes() == b"new"


@pytest.mark.usefixtures("windows")
def test_on_windows_a_file_that_stays_open_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_use(3, monkeypatch, "replace")
    with pytest.raises(PermissionError):
        portable_files.replace(tmp_path / "new", tmp_path / "old", pauses=(0.0, 0.0))


def test_elsewhere_a_replacement_that_is_refused_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").write_bytes(b"new")
    in_use(1, monkeypatch, "replace")
    with pytest.raises(PermissionError):
        portable_files.replace(tmp_path / "new", tmp_path / "old", pauses=(0.0, 0.0))


@pytest.mark.usefixtures("windows")
def test_on_windows_a_file_that_is_open_stays_for_a_later_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x")
    in_use(1, monkeypatch, "unlink")
    portable_files.remove(tmp_path / "file")
    assert (tmp_path / "file").exists()
    portable_files.remove(tmp_path / "file")
    portable_files.remove(tmp_path / "file")
    assert not (tmp_path / "file").exists()


@pytest.mark.usefixtures("windows")
def test_on_windows_the_key_and_the_cache_of_this_user_are_trusted(tmp_path: Path) -> None:
    key = make_key(tmp_path / "data" / "engine.key")
    (tmp_path / "data" / "engine.key").chmod(0o666)
    assert read_key(tmp_path / "data" / "engine.key") == key
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines").chmod(0o777)
    assert EngineCache(tmp_path / "engines", key_path=tmp_path / "data" / "engine.key").catalogue().records == ()
