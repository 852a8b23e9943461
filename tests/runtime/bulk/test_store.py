"""The shared folder: a claim has one owner and runs out by the share's clock; a file is put there once and whole."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mutoscope import OutputError
from mutoscope.bulk import store as s
from mutoscope.bulk.store import CLAIMS, MAKING, FolderStore


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "out", 60, ("videos",))


def other(store: FolderStore, owner: str = "elsewhere-1-abc") -> FolderStore:
    """A worker of another machine, whose processes cannot be seen."""
    made = FolderStore(store.root, store.lease_s)
    made.owner = owner
    return made


def age(path: Path, seconds: float) -> None:
    facts = path.stat()
    os.utime(path, (facts.st_mtime - seconds,) * 2)


def files(store: FolderStore) -> set[str]:
    return {path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file()}


def test_a_claim_has_one_owner_until_it_is_released(store: FolderStore):
    second = other(store)
    assert store.claim("k") and not second.claim("k") and not store.claim("k")
    second.release("k")  # not its own
    assert store.renew("k") and not second.renew("k")
    store.release("k")
    assert second.claim("k")
    assert files(store) == {"claims/k"}


def test_a_live_claim_is_not_taken_and_one_that_was_not_renewed_is_taken_once(store: FolderStore):
    far, third = other(store), other(store, "third-1-abc")
    assert far.claim("k")
    assert store.evict("k") is None
    age(store.root / CLAIMS / "k", 61)
    assert (store.evict("k") or "").startswith("elsewhere-1-abc on ")
    assert third.evict("k") is None
    assert third.claim("k") and not far.renew("k")
    assert files(store) == {"claims/k"}


def test_renewal_keeps_a_claim_and_what_is_being_made(store: FolderStore):
    assert store.claim("k")
    work = store.workspace("k.mp4")
    work.touch()
    hidden = work.with_name(f".{work.name}.tmp")
    hidden.touch()
    for path in (store.root / CLAIMS / "k", work, hidden):
        age(path, 61)
    assert store.renew("k")
    far = other(store)
    assert far.evict("k") is None
    far.sweep()
    assert work.exists() and hidden.exists()


def test_a_renewal_does_not_keep_the_claim_of_another(store: FolderStore):
    far = other(store)
    assert far.claim("k")
    age(store.root / CLAIMS / "k", 61)
    assert not store.renew("k")
    assert store.evict("k")


def test_a_process_of_this_machine_that_ended_is_known_at_once(store: FolderStore):
    code = "import sys; from pathlib import Path; from mutoscope.bulk.store import FolderStore;"
    code += "store = FolderStore(Path(sys.argv[1]), 3600); store.claim('k'); store.workspace('k.mp4').touch()"
    subprocess.run([sys.executable, "-c", code, str(store.root)], check=True)
    assert len(os.listdir(store.root / MAKING)) == 1
    assert store.evict("k")
    store.sweep()
    assert files(store) == set()


def test_ages_are_by_the_clock_of_the_share_whatever_this_machine_has(store: FolderStore, monkeypatch):
    far = other(store)
    assert far.claim("k")
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert store.evict("k") is None
    share = store.root / CLAIMS / "k"
    age(share, -3600)  # as the share's clock ran back: not old
    assert store.evict("k") is None


def test_an_unsigned_claim_is_void_after_its_lease(store: FolderStore):
    (store.root / CLAIMS / "k").touch()  # what a power cut leaves
    assert store.evict("k") is None
    age(store.root / CLAIMS / "k", 61)
    assert store.evict("k") == "- on an unknown machine"
    assert store.evict("k") is None


def test_the_first_file_of_a_name_stays_and_nothing_else_is_left(store: FolderStore):
    assert store.put_once("videos/a", b"first")
    work = store.workspace("a")
    work.write_bytes(b"second")
    assert not store.put_once("videos/a", work)
    assert store.read("videos/a") == b"first" and store.read("videos/b") is None
    store.replace("list", b"one")
    store.replace("list", b"two")
    assert store.read("list") == b"two"
    assert files(store) == {"videos/a", "list"} and store.names("videos") == {"a"}


def test_a_link_that_a_share_reports_as_failed_counts_if_it_is_there(store: FolderStore, monkeypatch):
    link = os.link

    def reports_a_failure(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", reports_a_failure)
    assert store.put_once("videos/a", b"content")


@pytest.mark.parametrize("step", ["write_bytes", "link", "fsync", "touch"])
def test_a_full_disk_is_told_and_leaves_nothing_half_written(store: FolderStore, monkeypatch, step: str):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert other(store).claim("k")
    monkeypatch.setattr(Path if step in ("write_bytes", "touch") else os, step, full)
    calls: list[Callable[[], object]] = [
        lambda: store.put_once("videos/a", b"content"),
        lambda: store.replace("list", b"content"),
    ]
    if step == "touch":
        calls = [lambda: store.evict("k")]
    elif step == "link":
        calls = calls[:1]
    for call in calls:
        with pytest.raises(OutputError, match="there is no space left"):
            call()
    monkeypatch.undo()
    assert not os.listdir(store.root / MAKING)


def test_a_list_that_cannot_be_replaced_is_told(store: FolderStore):
    (store.root / "list").mkdir()
    with pytest.raises(OutputError, match="list cannot be written"):
        store.replace("list", b"content")
    assert not os.listdir(store.root / MAKING)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        FolderStore(tmp_path / "file", 60)

    def unsupported(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    with pytest.raises(OutputError, match=r"without hard links .* choose a folder on another file system"):
        FolderStore(tmp_path / "share", 60)
    assert not any((tmp_path / "share" / MAKING).iterdir())


def test_a_full_disk_at_the_start_is_not_taken_for_a_lack_of_links(tmp_path: Path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(OutputError, match="there is no space left"):
        FolderStore(tmp_path / "out", 60)


def test_windows_waits_while_another_worker_reads_a_claim(store: FolderStore, monkeypatch):
    def in_use(*_: object) -> None:
        raise PermissionError(errno.EACCES, "in use")

    assert other(store).claim("k")
    age(store.root / CLAIMS / "k", 61)
    monkeypatch.setattr(os, "rename", in_use)
    with pytest.raises(PermissionError):
        store.evict("k")
    monkeypatch.setattr(sys, "platform", "win32")
    assert store.evict("k") is None


def test_a_worker_takes_its_own_unfinished_files_with_it(tmp_path: Path):
    with FolderStore(tmp_path, 60) as store:
        store.workspace("k.mp4").touch()
    assert not os.listdir(tmp_path / MAKING)


def test_machines_are_told_apart_without_proc_too(monkeypatch):
    here = s.machine_identity()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert s.machine_identity() != here and len(s.machine_identity()) == 12
