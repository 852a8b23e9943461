"""The graphs of a bundle that are open at the moment, and until when.

Knows bundles, backends and sessions. Knows nothing of stages.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from mutoscope_engines.chain import Chain
from mutoscope_engines.session import Backend, EngineWanted, Feeds, Session, SessionOptions, Tensor, TensorSpec

from ..bundle.bundle import Bundle
from ..bundle.contract import CONDITION, STAGES, stage_of
from ..bundle.manifest import Graph, GraphTensor
from ..errors import EXPORT_AGAIN, BundleError, CancelledError
from ..planning.execution import Execution
from ..planning.footprints import wanted_engine
from ..planning.plan import Plan

Run = Callable[[Feeds], dict[str, Tensor]]
_Parts = Sequence[tuple[Graph, SessionOptions]]
_Key = tuple[str, Hashable]  # the first file of a graph, and what options must share
_CLOSED = "the pipeline was closed; load it again to make videos"


class _User:
    """One `use` of a graph."""


class _Loaded:
    """A graph that is open, or that its first user is opening."""

    def __init__(self, role: str, user: _User) -> None:
        self.role = role
        self.users = {user}
        self.parts: list[Session] = []  # those that are open
        self.session: Session | None = None  # over all parts, once they are
        self.done = False  # nobody will use it again: it is to be closed

    def close(self) -> None:
        """Closes what is open of it. Closing again does nothing."""
        (self.session or Chain(self.parts)).close()


class LoadedGraphs:
    """Opens graphs when a stage needs them.

    Where the plan says `keep_loaded`, they stay open for the next video; where not, each is closed when its last user
    leaves it, so that only one stage's weights are in memory. Graphs are opened outside the lock: nobody but who wants
    the same graph waits for it.

    Ctrl-C may come between any two lines. What has to be undone is therefore written down before it is done, and each
    way of undoing it may be called again after it was interrupted.
    """

    def __init__(self, bundle: Bundle, execution: Execution) -> None:
        self.bundle = bundle
        self.execution = execution
        # Taken directly, never as `with self._changed`: an interrupt in that method would keep it locked for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # told when a graph was opened, or will not be
        self._loaded: dict[_Key, _Loaded] = {}
        self.closed = False

    @contextmanager
    def use(self, role: str, plan: Plan) -> Iterator[Run]:
        """What runs the graph of a role, as a `Binding` does, for the length of a `with`.

        Raises:
            CancelledError: the graphs were closed meanwhile, be it while this one was opened.
        """
        where = self.execution.placements[stage_of(role)]
        parts = self._parts(role, plan)
        key = parts[0][0].file, tuple(where.backend.shares_by(options) for _, options in parts)
        user = _User()

        def run(feeds: Feeds) -> dict[str, Tensor]:
            self._refuse_if_closed()  # `cancel` stops what runs, and between two runs nothing does
            return binding.run(feeds)

        try:
            try:
                with self._acquire(user, key, where.backend, parts).bind() as binding:
                    yield run
            finally:
                self._release(user, key, plan.memory.keep_loaded)
        finally:  # again, in case that Ctrl-C came while it was released
            self._release(user, key, plan.memory.keep_loaded)

    def _parts(self, role: str, plan: Plan) -> _Parts:
        """The graph of a role, with the options of each part."""
        where = self.execution.placements[stage_of(role)]
        with_loras = role in plan.sizes.with_loras
        graphs = self.bundle.manifest.graphs_of(role, where.precision, with_loras=with_loras)
        option = plan.option_of(role)
        symbols = plan.sizes.symbols(role, option.branches_per_call, plan.decoder_window)
        wanted = [wanted_engine(self.bundle, graph, symbols) for graph in graphs]
        streamed = self._streamed_bytes(option.streamed_bytes, where.backend, graphs, wanted)
        session = replace(self.execution.session, runs_once=plan.runs_once(role))
        return [
            (graph, replace(session, engine=engine, streamed_weight_bytes=count))
            for graph, engine, count in zip(graphs, wanted, streamed, strict=True)
        ]

    def _streamed_bytes(
        self, total: int, backend: Backend, graphs: Sequence[Graph], wanted: Sequence[EngineWanted]
    ) -> list[int]:
        """What each part streams of the bytes that its graph is to stream: in proportion to what it can."""
        if len(graphs) == 1 or not total:
            return [total] * len(graphs)
        now = backend.snapshot()
        can = [
            now.figures(self.bundle.path(graph.file), engine).streamable_bytes
            for graph, engine in zip(graphs, wanted, strict=True)
        ]
        # Where no part can any more, each is asked all the same, so that the backend says what it lacks.
        return [math.ceil(total * (each / sum(can))) if any(can) else total for each in can]

    def _acquire(self, user: _User, key: _Key, backend: Backend, parts: _Parts) -> Session:
        """A session with one more user: one that is open, or that another thread opens now, or a new one."""
        with self._lock:
            while True:
                self._refuse_if_closed()
                self._close_done()
                loaded = self._loaded.get(key)
                if loaded is None:
                    break
                if loaded.session is not None:
                    loaded.users.add(user)
                    return loaded.session
                self._changed.wait()
            self._close_idle(parts[0][0].role)
            self._loaded[key] = loaded = _Loaded(parts[0][0].role, user)
        self._open(loaded, backend, parts)
        with self._lock:
            self._refuse_if_closed()
            session = loaded.session = loaded.parts[0] if len(loaded.parts) == 1 else Chain(loaded.parts)
            self._changed.notify_all()
        return session

    def _release(self, user: _User, key: _Key, keep: bool) -> None:
        """Undoes `_acquire`, as far as it came. Doing so again does nothing."""
        with self._lock:
            self._changed.notify_all()  # who waits for a graph that could not be opened tries again
            loaded = self._loaded.get(key)
            if loaded is not None and user in loaded.users:
                last = loaded.users == {user} and (self.closed or not keep)
                loaded.done = last or loaded.session is None
                loaded.users.discard(user)
            self._close_done()

    def _open(self, loaded: _Loaded, backend: Backend, parts: _Parts) -> None:
        for graph, options in parts:
            self._refuse_if_closed()
            loaded.parts.append(backend.open(self.bundle.path(graph.file), options))
            _refuse_disagreement(loaded.parts[-1], graph)

    def preload(self, plan: Plan, stages: Sequence[str] = tuple(STAGES)) -> None:
        """Opens the graphs of stages; they stay open only where the plan says `keep_loaded`."""
        for stage in stages:
            for role in self.bundle.manifest.roles_of(stage):
                if stage == CONDITION and role not in plan.conditions.encoders:
                    continue
                with self.use(role, plan):
                    pass

    def _close_idle(self, role: str) -> None:
        """Closes the sessions of a role that nobody uses, over an engine for other sizes or over its other form: a plan
        counts one of them."""
        for loaded in self._loaded.values():
            loaded.done = loaded.done or (loaded.role == role and not loaded.users)
        self._close_done()

    def _close_done(self) -> None:
        """Closes what nobody will use again. What is left by an interrupt is closed by the next call."""
        for key, loaded in list(self._loaded.items()):
            if not loaded.done:
                continue
            try:
                loaded.close()
            except Exception:
                del self._loaded[key]
                raise
            del self._loaded[key]

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise CancelledError(_CLOSED)

    def close(self) -> None:
        """Closes what is not in use, cancels what is; that closes when its user leaves it. Waits for no graph that is
        being opened: who opens it closes it."""
        with self._lock:
            self.closed = True
            self._changed.notify_all()
            for loaded in self._loaded.values():
                if not loaded.users:
                    loaded.done = True
                elif loaded.session is not None:
                    loaded.session.cancel()
            self._close_done()


def _refuse_disagreement(session: Session, graph: Graph) -> None:
    """
    Raises:
        BundleError: what was opened has another interface than the manifest says.
    """
    _refuse_others(f"the inputs of {graph.file}", graph.inputs, session.inputs)
    _refuse_others(f"the outputs of {graph.file}", graph.outputs, session.outputs)


def _refuse_others(what: str, declared: Sequence[GraphTensor], found: Sequence[TensorSpec]) -> None:
    ours, theirs = {each.name: each for each in declared}, {each.name: each for each in found}
    if ours.keys() != theirs.keys() or not all(_alike(ours[name], theirs[name]) for name in ours):
        raise BundleError(
            f"{what} are {_listed(found)}, and its manifest says {_listed(declared)}. "
            f"To mend the bundle, {EXPORT_AGAIN}"
        )


def _alike(declared: GraphTensor, found: TensorSpec) -> bool:
    """The same type and rank, and the same sizes where both are numbers: a library may name what is left open anew."""
    return (
        declared.dtype == found.dtype
        and len(declared.shape) == len(found.shape)
        and all(
            size == other
            for size, other in zip(declared.shape, found.shape, strict=True)
            if isinstance(size, int) and isinstance(other, int) and other >= 0
        )
    )


def _listed(tensors: Sequence[GraphTensor | TensorSpec]) -> str:
    return ", ".join(f"{each.name} {each.dtype} [{', '.join(map(str, each.shape))}]" for each in tensors)
