"""A thread that makes all calls of one owner, for libraries that keep state with the thread that calls them.

Not an executor: that takes no work once the main thread has ended, while other threads may still make videos.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any

Queue = SimpleQueue[tuple[Callable[[], Any], "Future[Any]"] | None]


class OwnThread:
    """Ends with `end`, when this object is dropped, or with the process.

    `started` is false where the system starts no thread: at exit, or beyond its limit. Calls then run in the thread
    that asks for them.
    """

    def __init__(self, name: str) -> None:
        self._calls: Queue = SimpleQueue()
        self._end = weakref.finalize(self, self._calls.put, None)
        self._end.atexit = False  # calls registered with `atexit` may come later
        try:
            threading.Thread(target=_serve, args=[self._calls], name=name, daemon=True).start()
        except RuntimeError:
            self._end.detach()
        self.started = self._end.alive

    def run(self, call: Callable[[], Any]) -> Any:
        """Makes the call in the thread and waits for its result, or for its end when Ctrl-C interrupts the wait.

        Raises:
            RuntimeError: the thread was ended.
        """
        if not self.started:
            return call()
        if not self._end.alive:
            raise RuntimeError("the thread has ended")
        pending: Future[Any] = Future()
        self._calls.put((call, pending))
        try:
            return pending.result()
        finally:
            wait([pending])
            del pending  # an error that it holds knows this frame, and a cycle would keep memory of the GPU

    def end(self) -> None:
        """Ends the thread after the calls made before."""
        self._end()


def _serve(calls: Queue) -> None:
    while (asked := calls.get()) is not None:
        fulfil(asked[1], asked[0])
        del asked  # else what the last call used would stay until the next


def fulfil(pending: Future[Any], call: Callable[[], Any]) -> None:
    """Makes a call in this thread for one that waits for its result."""
    try:
        pending.set_result(call())
    except BaseException as error:
        pending.set_exception(error)
    finally:
        del pending, call  # as above
