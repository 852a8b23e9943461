"""The graphs of a bundle that are open at the moment, and until when.

Knows bundles, backends and sessions. Knows nothing of stages.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mutoscope_engines.session import Backend, Feeds, Session, SessionOptions, Tensor

from .bundle import Bundle
from .errors import CancelledError
from .plan import Plan

Run = Callable[[Feeds], dict[str, Tensor]]


class LoadedGraphs:
    """Opens graphs when a stage needs them.

    Where the plan says `keep_loaded`, they stay open for the next video; where not, each is closed when its last user
    leaves it, so that only one stage's weights are in memory.
    """

    def __init__(self, bundle: Bundle, backend: Backend, options: SessionOptions) -> None:
        self.bundle = bundle
        self._backend = backend
        self._options = options
        self._lock = threading.Lock()
        self._open: dict[str, Session] = {}
        self._users: dict[str, int] = {}
        self.closed = False

    @contextmanager
    def use(self, role: str, plan: Plan) -> Iterator[Run]:
        """What runs the graph of a role, as a `Binding` does, for the length of a `with`.

        Raises:
            CancelledError: the graphs were closed meanwhile.
        """
        file = self.bundle.manifest.graph(role, plan.precision).file
        with self._lock:
            self._refuse_if_closed()
            if file not in self._open:
                self._open[file] = self._backend.open(self.bundle.path(file), self._options)
            session = self._open[file]
            self._users[file] = self._users.get(file, 0) + 1

        def run(feeds: Feeds) -> dict[str, Tensor]:
            self._refuse_if_closed()  # `cancel` stops what runs, and between two runs nothing does
            return binding.run(feeds)

        try:
            with session.bind() as binding:
                yield run
        finally:
            with self._lock:
                self._users[file] -= 1
                if self._users[file] == 0 and (self.closed or not plan.keep_loaded):
                    self._open.pop(file).close()

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise CancelledError("the pipeline was closed; load it again to make videos")

    def close(self) -> None:
        """Closes what is not in use, cancels what is; that closes when its user leaves it."""
        with self._lock:
            self.closed = True
            for file, session in list(self._open.items()):
                if self._users.get(file, 0) == 0:
                    self._open.pop(file).close()
                else:
                    session.cancel()
