"""Opening graphs takes minutes, and neither closing nor another graph waits for it."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mutoscope import CancelledError, Pipeline, RuntimeOptions
from mutoscope.bundle.contract import ROLES
from mutoscope.errors import GraphError
from mutoscope.planning.execution import Execution
from mutoscope.running.loaded import LoadedGraphs
from mutoscope_engines.session import Session, SessionOptions
from mutoscope_engines.testing import FakeBackend

SECONDS = 20


class SlowBackend(FakeBackend):
    """Opens a graph once it is let: `opening` says which began, `let` of its role lets it go on."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(ROLES, dict))
        self.opening: dict[str, threading.Event] = {}
        self.let: dict[str, threading.Event] = {}
        self.fails: set[str] = set()

    def events_of(self, role: str) -> tuple[threading.Event, threading.Event]:
        return self.opening.setdefault(role, threading.Event()), self.let.setdefault(role, threading.Event())

    def open(self, graph: Path, options: SessionOptions) -> Session:
        began, let = self.events_of(graph.parent.name)
        began.set()
        assert let.wait(SECONDS)
        if graph.parent.name in self.fails:
            self.fails.clear()
            raise GraphError("damaged")
        return super().open(graph, options)

    @property
    def opened(self) -> list[str]:
        return [role for event, role in self.log if event == "open"]


class Rig:
    """A pipeline on a backend that is slow, and threads that use one graph each."""

    def __init__(self, bundle: Any) -> None:
        self.backend = SlowBackend()
        for role in ("text_encoder", "denoiser"):
            self.backend.events_of(role)
        options = RuntimeOptions(backend=self.backend)
        with Pipeline(bundle, options) as pipeline:
            self.plan = pipeline.plan("a red circle")
        self.graphs = LoadedGraphs(bundle, Execution.choose(options, bundle))
        self.threads = ThreadPoolExecutor(4)

    def use(self, role: str) -> Future[Any]:
        def enter() -> Any:
            with self.graphs.use(role, self.plan):
                return role

        return self.threads.submit(enter)

    def began(self, role: str) -> None:
        assert self.backend.opening[role].wait(SECONDS)


@pytest.fixture
def rig(make_bundle: Any) -> Any:
    rig = Rig(make_bundle())
    yield rig
    for let in rig.backend.let.values():
        let.set()
    rig.threads.shutdown()
    rig.graphs.close()
    assert rig.backend.open_sessions == 0


def test_closing_does_not_wait_for_a_graph_that_loads_and_the_loader_frees_it(rig: Rig) -> None:
    loading = rig.use("denoiser")
    rig.began("denoiser")
    rig.graphs.close()  # returns although nothing lets the backend go on
    assert not loading.done()
    rig.backend.let["denoiser"].set()
    with pytest.raises(CancelledError, match="the pipeline was closed"):
        loading.result(SECONDS)
    assert rig.backend.opened == ["denoiser"] and rig.backend.open_sessions == 0


def test_who_waits_for_a_graph_that_another_loads_is_let_go_by_closing(rig: Rig) -> None:
    loading = rig.use("denoiser")
    rig.began("denoiser")
    waiting = rig.use("denoiser")
    with pytest.raises(TimeoutError):
        waiting.result(0.2)
    rig.graphs.close()
    with pytest.raises(CancelledError):
        waiting.result(SECONDS)
    assert not loading.done()


def test_another_graph_does_not_wait_for_one_that_loads(rig: Rig) -> None:
    loading = rig.use("denoiser")
    rig.began("denoiser")
    rig.backend.let["text_encoder"].set()
    assert rig.use("text_encoder").result(SECONDS) == "text_encoder" and not loading.done()


def test_two_who_want_the_same_graph_open_it_once(rig: Rig) -> None:
    first = rig.use("denoiser")
    rig.began("denoiser")
    second = rig.use("denoiser")
    rig.backend.let["denoiser"].set()
    assert first.result(SECONDS) == second.result(SECONDS) == "denoiser"
    assert rig.backend.opened == ["denoiser"]


def test_where_opening_fails_who_waited_tries_again(rig: Rig) -> None:
    rig.backend.fails.add("denoiser")
    first = rig.use("denoiser")
    rig.began("denoiser")
    second = rig.use("denoiser")
    rig.backend.let["denoiser"].set()
    with pytest.raises(GraphError, match="damaged"):
        first.result(SECONDS)
    assert second.result(SECONDS) == "denoiser"
