"""Pipelines whose graphs are functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mutoscope import Pipeline
from mutoscope.bundle.bundle import Bundle
from mutoscope_engines.testing import FakeBackend

from tests.runtime.running.functions import FUNCTIONS


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(FUNCTIONS)


@pytest.fixture
def load(backend: FakeBackend) -> Callable[..., Pipeline]:
    """A pipeline of a bundle over the fake, with options."""

    def load(bundle: Bundle, **options: Any) -> Pipeline:
        return Pipeline.load(bundle.root, backend=backend, **options)

    return load
