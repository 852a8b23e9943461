"""Where the server listens, and when it ends: sockets and uvicorn."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import signal
import socket
import ssl
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
REQUEST_WAIT_S = 20.0  # for the first line and the headers of a request
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
    except OSError as error:
        raise _refusal(error, options) from error
    try:
        if os.name == "posix":  # on Windows it would let another program take the same port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise _refusal(error, options) from error
    return found


def _refusal(error: OSError, options: ServeOptions) -> OutputError:
    where = f"{options.host}, port {options.port}"
    return OutputError(f"cannot listen on {where}: {error.strerror}; choose another port, or 0 for a free one")


def tls_context(options: ServeOptions) -> ssl.SSLContext | None:
    """What the server identifies itself with, where it is to serve https.

    Raises:
        RequestError: certificate and key cannot be used; says why.
    """
    if options.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # Without a password OpenSSL would ask for one at the terminal.
        context.load_cert_chain(options.tls_certificate, options.tls_key, password="")
    except OSError as error:
        raise RequestError(
            f"tls_certificate={options.tls_certificate!r} and tls_key={options.tls_key!r} cannot be used: {error}; "
            "name PEM files that belong together, the key without a password"
        ) from error
    return context


def address_of(found: socket.socket, tls: bool = False) -> dict[str, str]:
    """What a client connects to: the URL, and the path of a Unix socket."""
    if found.family == getattr(socket, "AF_UNIX", None):
        path = os.path.abspath(found.getsockname())
        return {"url": f"http+unix://{quote(path, safe='')}", "uds": path}
    host, port = found.getsockname()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return {"url": f"{'https' if tls else 'http'}://{where}"}


class Server(uvicorn.Server):
    """Serves an application, says where it listens once it does, and ends on a signal, or when it is told.

    Args:
        found: a socket of `listen`.
        stopping: called when the end begins, before open connections are waited for.
        tls: of `tls_context`; the server serves https with it.
    """

    def __init__(
        self,
        app: ASGIApp,
        found: socket.socket,
        *,
        stopping: Callable[[], object],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=ImpatientProtocol,
            ws="none",
            access_log=False,  # a path may hold an id, and a query anything
            log_config=None,
            log_level="critical",
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            backlog=BACKLOG,
            timeout_keep_alive=int(REQUEST_WAIT_S),
            timeout_graceful_shutdown=SHUTDOWN_S,
            proxy_headers=False,
            ssl_context_factory=None if tls is None else lambda *_: tls,
        )
        super().__init__(config)
        self._found, self._stopping = found, stopping

    def serve_until_the_end(self) -> None:
        """Returns once it has ended, with every connection closed."""
        asyncio.run(self.serve(sockets=[self._found]))

    def end(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Ends soon. For any thread, and as a handler of signals."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Prints the address once connections are taken."""
        await super().startup(sockets)
        if self.started:
            address = address_of(self._found, self.config.is_ssl)
            tell(json.dumps(address))
            note(f"listening at {address['url']}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends streams of events first, which would be waited for."""
        self._stopping()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ends in order on what asks a process to end; uvicorn's own would raise the signal again afterwards."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
            yield
            return
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


class ImpatientProtocol(H11Protocol):
    """Closes a connection on which no request arrives in time, so that slow clients cannot take all connections."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A request has to follow soon."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._deadline.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Another request may follow."""
        self._deadline.cancel()
        self._expect_request()
        super().on_response_complete()

    def _expect_request(self) -> None:
        self._deadline = self.loop.call_later(REQUEST_WAIT_S, self._close_if_none_came)

    def _close_if_none_came(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def _unix_socket(path: Path) -> socket.socket:
    """For its owner alone, and in the place of one that nobody listens on any more."""
    if sys.platform == "win32":
        raise RequestError("this system has no Unix sockets for Python; leave uds out, and use port=0")
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.lstat().st_mode):
            _refuse_used(path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
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


def _refuse_used(path: Path, probe: socket.socket) -> None:
    with probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
    raise OutputError(f"cannot listen on uds={str(path)!r}: another server listens there already; name another path")
