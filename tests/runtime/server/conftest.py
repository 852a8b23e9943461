"""A server for the tests that may share one, and one for each that may not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.server.served import Served, running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Its videos are made at once, and stay for the other tests of the file."""
    with running(tmp_path_factory.mktemp("served")) as served:
        yield served


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Its gate is closed: no step ends before the test says so."""
    with running(tmp_path) as found:
        found.gate.close()
        yield found
