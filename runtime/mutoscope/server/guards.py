"""What stands between a client and the routes: who may ask, how long they may take, and what every answer says.

Plain ASGI, so that streams pass through untouched. Knows no route but those that anybody may ask for.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..terminal import note
from .refusals import NO_RETRY, error_body

COOKIE = "mutoscope_session"
MOST_WAIT_S = 60.0  # for the body of a request, and for a client to take the next part of an answer

_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


def session_of(token: str) -> str:
    """What the page's cookie holds in place of the token: it follows from the token, so it survives a restart."""
    return hmac.new(token.encode(), b"mutoscope page session", hashlib.sha256).hexdigest()


class Guards:
    """Around the whole application.

    Args:
        token: what clients must send; `None` where none is asked for.
        hosts: names under which the server may be asked where there is no token, beside those of this machine; any
            name where it is `None`, as no browser reaches a Unix socket.
        open_paths: what needs no token, with all below it.
        max_body: bytes; a body that says it has more is refused before any of it is read.
        wait_s: how long a client may take to send a body, and to take a part of an answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str | None,
        hosts: frozenset[str] | None = frozenset(),
        open_paths: tuple[str, ...] = (),
        max_body: int | None = None,
        wait_s: float = MOST_WAIT_S,
    ) -> None:
        self._max_body = max_body
        self._app, self._token, self._hosts, self._open_paths, self._wait_s = app, token, hosts, open_paths, wait_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(receive, send, self._wait_s)
        try:
            app = self._refused(Headers(scope=scope), scope) or self._app
            await app(scope, exchange.receive, exchange.send)
        except _SlowError:
            if not exchange.started:
                answer = _error(HTTPStatus.REQUEST_TIMEOUT, "timeout", "the request took too long to arrive", NO_RETRY)
                await answer(scope, receive, exchange.send)
        except Exception as error:  # it has been answered; its text may hold a prompt
            note(f"{scope['method']} failed with {type(error).__name__}")

    def _refused(self, headers: Headers, scope: Scope) -> ASGIApp | None:
        length = headers.get("content-length", "")
        if self._max_body is not None and length.isdecimal() and int(length) > self._max_body:
            words = f"the body of the request is too large: {length[:20]} bytes; at most {self._max_body} are allowed"
            return _error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "request_entity_too_large", words)
        host = headers.get("host", "")
        # Another site's page may send requests here from a browser on this machine.
        origin = headers.get("origin")
        if origin is not None and _host_of(origin) != host:
            return _error(HTTPStatus.FORBIDDEN, "foreign_origin", "pages of other sites may not use this server")
        if self._token is None:
            # A name of another site may be made to lead here (DNS rebinding); an address of this machine may not.
            if not self._is_own(host):
                words = f"this server does not answer to the name {host[:80]!r}; ask for it by its address"
                return _error(HTTPStatus.FORBIDDEN, "unknown_host", words)
            return None
        path = scope["path"]
        is_open = any(path == each or path.startswith(f"{each}/") for each in self._open_paths)
        if is_open or not path.startswith(("/v1/", "/metrics")) or self._knows(headers):
            return None
        words = "this server needs a token: send `Authorization: Bearer TOKEN`"
        return _error(HTTPStatus.UNAUTHORIZED, "invalid_api_key", words, {"www-authenticate": "Bearer"})

    def _knows(self, headers: Headers) -> bool:
        assert self._token is not None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token.encode()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), session_of(self._token).encode())

    def _is_own(self, host: str) -> bool:
        if self._hosts is None:
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            return ip_address(name).is_loopback
        except ValueError:
            return False


def _host_of(origin: str) -> str | None:
    """With its port; `None` for text that is no address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


class _SlowError(Exception):
    """The client keeps the server waiting."""


class _Exchange:
    """One request and its answer, with a limit to every wait, and the headers that every answer has."""

    def __init__(self, receive: Receive, send: Send, wait_s: float) -> None:
        self.started = False
        self._receive, self._send, self._wait_s = receive, send, wait_s
        self._whole = False  # the body has arrived
        self._deadline = asyncio.get_running_loop().time() + wait_s

    async def receive(self) -> Message:
        if self._whole:  # only waits for the client to go, which may take as long as it likes
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise _SlowError from None
        self._whole = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        try:
            async with asyncio.timeout(self._wait_s):
                await self._send(message)
        except TimeoutError:
            raise _SlowError from None


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(error_body(status, code, message), status, headers=headers)
