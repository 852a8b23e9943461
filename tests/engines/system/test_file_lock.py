"""The lock between processes and threads."""

from __future__ import annotations

import errno
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutoscope_engines.system.file_lock import file_lock

HOLDER = """
import sys
from pathlib import Path
from mutoscope_engines.system.file_lock import file_lock
with file_lock(Path(sys.argv[1]), wait=True):
    print("held", flush=True)
    sys.stdin.read()
"""


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.lock"


def test_a_lock_that_another_process_holds_is_not_given_until_that_process_is_killed(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with file_lock(path, wait=False) as held:
            assert not held
        process.kill()
        process.wait()
        with file_lock(path, wait=True) as held:
            assert held


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has locks on every file system")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP], ids=errno.errorcode.get)
def test_a_file_system_without_locks_serves_in_silence(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with file_lock(path, wait=True) as first:
        with file_lock(path, wait=False) as second:
            assert (first, second) == (True, False)
        assert path.exists()
    assert list(path.parent.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has locks on every file system")
def test_without_locks_a_holder_that_was_killed_holds_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import errno, fcntl, os\n{inspect.getsource(no_locks)}fcntl.flock = no_locks\n{HOLDER}"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        process.kill()
    assert path.exists()
    monkeypatch.setattr("fcntl.flock", no_locks)
    with file_lock(path, wait=True) as held:
        assert held


def test_its_file_is_gone_when_nobody_holds_it(path: Path) -> None:
    with file_lock(path, wait=False) as held:
        assert held
        assert path.exists()
    assert list(path.parent.iterdir()) == []


def test_it_is_let_go_where_an_error_leaves_it(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), file_lock(path, wait=True):
        raise KeyboardInterrupt
    with file_lock(path, wait=False) as held:
        assert held


def test_a_link_in_its_place_is_not_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    path.symlink_to(tmp_path / "other")
    with pytest.raises(OSError), file_lock(path, wait=True):
        pass
    assert (tmp_path / "other").read_bytes() == b"other"
