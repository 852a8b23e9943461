"""A checkpoint to spoil."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.making import unmeasured


@pytest.fixture(scope="module", autouse=True)
def not_measured() -> Iterator[None]:
    """Coverage counts the lines of the runtime and the engines, which have tests of their own."""
    with unmeasured():
        yield


@pytest.fixture
def copy(wan_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own to spoil."""
    return Path(shutil.copytree(wan_checkpoint, tmp_path / "copy"))
