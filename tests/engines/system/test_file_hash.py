"""A file that was not written to is hashed once, and one that was, whatever its size and time say, again."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mutoscope_engines.system.file_hash import file_sha256, known_sha256

A_TICK_S = 0.02  # of the clock that file systems write down


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One more whenever a file is read to be hashed."""
    found: list[str] = []
    whole: Callable[..., Any] = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        found.append(file.name)
        return whole(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return found


def ten_seconds_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 10_000_000_000)


def test_a_file_that_was_not_written_to_since_is_read_once(
    tmp_path: Path, readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"first")
    ten_seconds_later(monkeypatch)
    assert [known_sha256(path) for _ in range(3)] == [hashlib.sha256(b"first").hexdigest()] * 3
    assert len(readings) == 1


def test_a_file_that_was_written_to_is_read_again_though_it_has_its_old_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"first")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    ten_seconds_later(monkeypatch)
    known_sha256(path)
    time.sleep(A_TICK_S)
    path.write_bytes(b"other")
    if os.name == "posix":  # elsewhere nothing but the time tells it
        os.utime(path, ns=times)
    assert known_sha256(path) == hashlib.sha256(b"other").hexdigest()


def test_what_was_just_written_is_read_as_its_time_may_stay_the_same(tmp_path: Path, readings: list[str]) -> None:
    path = tmp_path / "a"
    for content in (b"first", b"other", b"third"):
        path.write_bytes(content)
        assert known_sha256(path) == hashlib.sha256(content).hexdigest() == file_sha256(path)
    assert len(readings) == 6


def test_a_file_that_is_gone_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        known_sha256(tmp_path / "a")
