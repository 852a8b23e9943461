"""Pipelines on the fake backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from mutoscope import Pipeline
from mutoscope_engines.testing import FakeBackend

from tests.runtime.pipeline.functions import GRAPHS, SHORT_OF_MEMORY

Load = Callable[..., Pipeline]


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend({function.__name__: function for function in GRAPHS})


@pytest.fixture
def load(backend: FakeBackend, make_bundle) -> Load:
    """A pipeline over the fake, with options; `bundle` is one that the test made."""
    return lambda bundle=None, **options: Pipeline.load((bundle or make_bundle()).root, backend=backend, **options)


@pytest.fixture
def pipeline(load: Load) -> Iterator[Pipeline]:
    with load() as pipeline:
        yield pipeline


@pytest.fixture
def short_of_memory(backend: FakeBackend) -> None:
    backend.memory = SHORT_OF_MEMORY
