"""Where the server listens, and when it ends: sockets, uvicorn, and the parent that started it."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from urllib.parse import quote

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import OutputError, RequestError
from ..terminal import note, tell
from .options import ServeOptions

MOST_CONNECTIONS = 512
HEADER_WAIT_S = 20.0  # for the first line and the headers of a request
BACKLOG = 128
SHUTDOWN_S = 2  # for answers that are under way; streams of events would never end


def listen(options: ServeOptions) -> socket.socket:
    """A socket that clients can connect to.

    Raises:
        OutputError: the address or the path cannot be taken; says why.
    """
    if options.uds is not None:
        return _unix_socket(Path(options.uds))
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        if os.name == "posix":  # on Windows it would let another program take the same port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        where = f"{options.host}, port {options.port}"
        raise OutputError(
            f"cannot listen on {where}: {error.strerror}; choose another port, or 0 for a free one"
        ) from error
    return found


def address_of(found: socket.socket) -> dict[str, str]:
    """What a client connects to: the URL, and the path of a Unix socket."""
    if found.family == getattr(socket, "AF_UNIX", None):
        path = os.path.abspath(found.getsockname())
        return {"url": f"http+unix://{quote(path, safe='')}", "uds": path}
    host, port = found.getsockname()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    return {"url": f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"}


def serve(app: ASGIApp, found: socket.socket, *, stopping: Callable[[], object]) -> None:
    """Serves until a signal comes or the parent's end of standard input closes.

    Args:
        stopping: called when the end begins, before open connections are waited for.
    """
    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws="none",
        lifespan="on",
        access_log=False,  # a path may hold an id, and a query anything
        log_config=None,
        log_level="critical",
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        backlog=BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=SHUTDOWN_S,
        proxy_headers=False,
    )
    server = _Server(config, address_of(found), stopping)
    with _parent_watched(server.end):
        asyncio.run(server.serve(sockets=[found]))


class _Server(uvicorn.Server):
    """Says where it listens once it does."""

    def __init__(self, config: uvicorn.Config, address: dict[str, str], stopping: Callable[[], object]) -> None:
        super().__init__(config)
        self._address, self._stopping = address, stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            tell(json.dumps(self._address))
            note(f"listening at {self._address['url']}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ends in order on what asks a process to end; uvicorn's own would raise the signal again afterwards."""
        numbers = [
            getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
        ]
        before = {number: signal.getsignal(number) for number in numbers}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # as under `nohup`
                signal.signal(number, self.end)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def end(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Ends soon."""
        self.should_exit = True


class ImpatientProtocol(H11Protocol):
    """Closes a connection whose request does not arrive, so that slow clients cannot take all connections."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._begun = 0
        self._deadline = self.loop.call_later(HEADER_WAIT_S, self._close_unless_asked, 0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.conn.their_state.__name__ == "IDLE" and self._deadline.cancelled():
            self._deadline = self.loop.call_later(HEADER_WAIT_S, self._close_unless_asked, 0)
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._deadline.cancel()

    def _close_unless_asked(self, _: int) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


@contextmanager
def _parent_watched(end: Callable[[], object]) -> Iterator[None]:
    """Calls `end` once standard input closes, where it is a pipe or socket: whoever started us holds the other end."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode if sys.stdin is not None else 0
    except (OSError, ValueError):
        mode = 0
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        threading.Thread(target=_read_to_the_end, args=(end,), name="mutoscope-parent", daemon=True).start()
    yield


def _read_to_the_end(end: Callable[[], object]) -> None:
    """In a thread of its own, as reading from a pipe cannot be waited for on every system."""
    try:
        while os.read(sys.stdin.fileno(), 65536):
            continue
    except (OSError, ValueError):
        pass
    note("standard input closed; ending")
    end()


def _unix_socket(path: Path) -> socket.socket:
    """For its owner alone, and in the place of one that nobody listens on any more."""
    if not hasattr(socket, "AF_UNIX"):
        raise RequestError("this system has no Unix sockets for Python; leave uds out, and use port=0")
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.lstat().st_mode):
            _refuse_used(path)
            path.unlink()
        before = os.umask(0o177)
        try:
            found.bind(str(path))
        finally:
            os.umask(before)
    except OSError as error:
        found.close()
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot listen on uds={str(path)!r}: {reason}; name a new, short path in a folder of yours"
        ) from error
    return found


def _refuse_used(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
    raise OutputError(f"cannot listen on uds={str(path)!r}: another server does already; name another path")
