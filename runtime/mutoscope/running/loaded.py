"""The graphs of a bundle that are open at the moment, and until when.

Knows bundles, backends and sessions. Knows nothing of stages.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from mutoscope_engines.chain import Chain
from mutoscope_engines.session import Backend, Feeds, Session, SessionOptions, Tensor

from ..bundle.bundle import Bundle, Graph
from ..errors import CancelledError
from ..planning.execution import Execution
from ..planning.footprints import GRAPHS, stage_of, wanted_engine
from ..planning.plan import Plan

Run = Callable[[Feeds], dict[str, Tensor]]


class LoadedGraphs:
    """Opens graphs when a stage needs them.

    Where the plan says `keep_loaded`, they stay open for the next video; where not, each is closed when its last user
    leaves it, so that only one stage's weights are in memory.
    """

    def __init__(self, bundle: Bundle, execution: Execution) -> None:
        self.bundle = bundle
        self.execution = execution
        self._lock = threading.Lock()
        self._open: dict[tuple[str, Hashable], Session] = {}  # by its first file, and what options must share
        self._users: dict[tuple[str, Hashable], int] = {}
        self.closed = False

    @contextmanager
    def use(self, role: str, plan: Plan) -> Iterator[Run]:
        """What runs the graph of a role, as a `Binding` does, for the length of a `with`.

        Raises:
            CancelledError: the graphs were closed meanwhile.
        """
        where = self.execution.placements[stage_of(role)]
        graphs = self.bundle.manifest.graphs_of(role, where.precision)
        symbols = plan.sizes.symbols(role, plan.branches_per_call, plan.decoder_window)
        streamed = plan.streamed_bytes(role)
        parts = {
            graph.file: replace(
                self.execution.session,
                engine=wanted_engine(self.bundle, graph, symbols),
                streamed_weight_bytes=streamed and math.ceil(streamed * self._share(graph, graphs)),
                runs_once=plan.runs_once(role),
            )
            for graph in graphs
        }
        key = graphs[0].file, tuple(where.backend.shares_by(options) for options in parts.values())
        with self._lock:
            self._refuse_if_closed()
            if key not in self._open:
                self._close_idle(graphs[0].file)
                self._open[key] = self._opened(where.backend, parts)
            session = self._open[key]
            self._users[key] = self._users.get(key, 0) + 1

        def run(feeds: Feeds) -> dict[str, Tensor]:
            self._refuse_if_closed()  # `cancel` stops what runs, and between two runs nothing does
            return binding.run(feeds)

        try:
            with session.bind() as binding:
                yield run
        finally:
            with self._lock:
                self._users[key] -= 1
                if self._users[key] == 0 and (self.closed or not plan.keep_loaded):
                    self._open.pop(key).close()

    def _opened(self, backend: Backend, parts: Mapping[str, SessionOptions]) -> Session:
        with ExitStack() as opened:
            sessions = [
                opened.enter_context(backend.open(self.bundle.path(file), options)) for file, options in parts.items()
            ]
            opened.pop_all()
        return sessions[0] if len(sessions) == 1 else Chain(sessions)

    def _share(self, graph: Graph, graphs: Sequence[Graph]) -> float:
        return self.bundle.size_of(graph) / sum(map(self.bundle.size_of, graphs))

    def preload(self, plan: Plan, stages: Sequence[str] = tuple(GRAPHS)) -> None:
        """Opens the graphs of stages; they stay open only where the plan says `keep_loaded`."""
        for stage in stages:
            for role in GRAPHS[stage]:
                with self.use(role, plan):
                    pass

    def _close_idle(self, file: str) -> None:
        """Closes the sessions of a graph that nobody uses, such as over an engine for other sizes."""
        for key in [key for key in self._open if key[0] == file and not self._users.get(key)]:
            self._open.pop(key).close()

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise CancelledError("the pipeline was closed; load it again to make videos")

    def close(self) -> None:
        """Closes what is not in use, cancels what is; that closes when its user leaves it."""
        with self._lock:
            self.closed = True
            for key, session in list(self._open.items()):
                if self._users.get(key, 0) == 0:
                    self._open.pop(key).close()
                else:
                    session.cancel()
