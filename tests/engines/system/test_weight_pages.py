from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path

import pytest
from mutoscope_engines.system.weight_pages import pages_given_back

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system call is Linux's")


def resident_file_bytes() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) * 1024


def test_pages_that_were_read_leave_memory_and_read_the_same_again(tmp_path: Path):
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    content = bytes(range(256)) * 4096 * 64  # 64 MB
    (folder / "weights").write_bytes(content)
    with (folder / "weights").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] == content
        before = resident_file_bytes()
        with pages_given_back(folder):
            deadline = time.monotonic() + 30
            while resident_file_bytes() > before - len(content) // 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert mapped[:] == content


def test_pages_of_other_files_stay(tmp_path: Path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside-not").write_bytes(bytes(1 << 24))
    with (tmp_path / "inside-not").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert len(mapped[:]) == 1 << 24
        before = resident_file_bytes()
        with pages_given_back(tmp_path / "inside"):
            time.sleep(0.7)
        assert resident_file_bytes() > before - (1 << 23)
