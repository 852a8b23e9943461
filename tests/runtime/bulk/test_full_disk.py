"""A batch on a disk that is really full: it stops and says so, leaves nothing half written, and goes on later."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mutoscope.bulk import worker
from mutoscope.cli import main

ROOM = 60 * 1024  # bytes that are left at first: for the files of the protocol, and for some of the videos
VIDEOS = 12


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if mounted.returncode:
        pytest.skip(f"a file system of its own takes root: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("ending", [".npy", ".mp4", ".gif"])
def test_a_batch_stops_where_the_disk_is_full_and_goes_on_when_there_is_space(
    disk: Path, bundle: Path, write: Callable[..., Path], ending: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(worker, "WAIT_S", 0.01)
    out, ballast = disk / "out", disk / "ballast"
    jobs = write({"prompt": "a circle", "seed": 1, "repeat": VIDEOS, "num_frames": 9})
    command = ["batch", str(jobs), str(out), "--bundle", str(bundle), "--ending", ending, "--sign", "off"]
    with ballast.open("wb") as file:
        file.write(bytes(2**20 - ROOM))
    assert main(command) == 2
    assert "there is no space left" in capsys.readouterr().err
    assert not list((out / "making").iterdir()) + list((out / "claims").iterdir())
    receipts = {path.stem: json.loads(path.read_text()) for path in (out / "receipts").iterdir()}
    hashes = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in (out / "videos").iterdir()}
    assert 0 < len(receipts) < VIDEOS
    assert all(hashes[key] == receipt["sha256"] for key, receipt in receipts.items())
    ballast.unlink()
    assert main(command) == 0
    listed = [json.loads(line) for line in (out / "receipts.jsonl").read_text().splitlines()]
    assert [each["seed"] for each in listed] == list(range(1, VIDEOS + 1))
    now = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in (out / "videos").iterdir()}
    assert now == {each["key"]: each["sha256"] for each in listed} and hashes.items() <= now.items()
    assert not list((out / "failed").iterdir())  # a full disk is no attempt
