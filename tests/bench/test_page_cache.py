"""Files leave the page cache."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from mutoscope_bench import page_cache

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_files_leave_the_page_cache_or_the_reason_is_said(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(os.urandom(1 << 20))
    reason = page_cache.drop(tmp_path)
    assert reason is None or "page cache" in reason
