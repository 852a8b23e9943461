"""Who may ask, how much, how slowly, and what every answer says to a browser."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from mutoscope.server import listening
from mutoscope.server.guards import HEADERS, Guards

from tests.runtime.server.served import CIRCLE, Served, running, wait_for

TOKEN = "a-token-of-32-characters-or-more"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running(tmp_path_factory.mktemp("locked"), token=TOKEN, max_body=200_000) as served:
        yield served


@pytest.mark.parametrize(
    "path", ["/v1/videos", "/v1/models", "/v1/queue", "/v1/events", "/metrics", "/v1/videos/video_1"]
)
@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", "Bearer ü"])
def test_without_the_token_nothing_is_told(path: str, header: str | None, locked: Served):
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    answer = httpx2.get(locked.url + path, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
def test_the_page_and_health_need_no_token(path: str, locked: Served):
    assert httpx2.get(locked.url + path).status_code == 200


def test_with_the_token_the_openai_client_gets_in(locked: Served):
    assert [model.id for model in locked.openai.models.list()] == ["built-in"]


def test_the_page_logs_in_with_a_cookie_that_is_not_the_token(locked: Served):
    with httpx2.Client(base_url=locked.url) as browser:
        assert browser.get("/v1/videos").status_code == 401
        assert browser.post("/v1/session", json={"token": "wrong"}).status_code == 401
        answer = browser.post("/v1/session", json={"token": TOKEN})
        assert answer.json() == {"token_needed": True}
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
        assert browser.get("/v1/videos").status_code == 200
        browser.delete("/v1/session")
        assert browser.get("/v1/videos").status_code == 401
    forged = httpx2.get(f"{locked.url}/v1/videos", headers={"cookie": "mutoscope_session=" + "0" * 64})
    assert forged.status_code == 401


def test_a_session_is_not_needed_where_there_is_no_token(shared: Served):
    assert shared.http.post("/v1/session", json={"token": "x"}).json() == {"token_needed": False}
    assert shared.http.delete("/v1/session").json() == {"token_needed": False}


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://["])
def test_the_pages_of_other_sites_may_not_ask(origin: str, shared: Served):
    before = shared.service.table.counts()
    answer = shared.http.post("/v1/videos", data={"prompt": CIRCLE}, headers={"origin": origin})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")
    assert shared.service.table.counts() == before
    assert shared.http.get("/v1/queue", headers={"origin": shared.url}).status_code == 200


@pytest.mark.parametrize(("host", "status"), [
    ("evil.example", 403), ("evil.example:8000", 403), ("127.0.0.1.evil.example", 403), ("192.0.2.1", 403), ("", 403),
    ("[", 403), ("localhost:1", 200), ("page.localhost", 200), ("[::1]:8000", 200), ("127.3.2.1", 200),
])  # fmt: skip
def test_a_name_of_another_site_that_leads_here_is_refused(host: str, status: int, shared: Served):
    answer = shared.http.get("/v1/queue", headers={"host": host})
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["code"] == "unknown_host"


@pytest.mark.parametrize("path", ["/", "/v1/videos", "/none", "/healthz"])
def test_every_answer_has_the_headers_that_bound_a_browser(path: str, shared: Served):
    headers = shared.http.get(path).headers
    assert {name: headers[name] for name in HEADERS} == HEADERS
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert "server" not in headers


@pytest.mark.parametrize("path", [
    "/../../pyproject.toml", "/%2e%2e/__init__.py", "/..%2f__init__.py", "/%2e%2e%2f%2e%2e%2fmaking.py", "//etc/passwd",
    "/v1/videos/..%2f..%2fjobs.sqlite3/content", "/v1/videos/%2e%2e/content", "/index.html%00.png", "/v1/videos/a%00b",
    "/v1/models/..%2f", "/\\..\\__init__.py",
])  # fmt: skip
def test_no_path_leads_out_of_the_page(path: str, shared: Served):
    address = urlsplit(shared.url)
    with socket.create_connection((address.hostname, address.port)) as raw:  # clients would tidy the path up
        raw.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split(b" ", 2)[1] in (b"404", b"405"), answer
    assert b"root:" not in answer and b"import" not in answer


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_413(chunked: bool, locked: Served):
    body = b'{"prompt": "' + b"x" * 300_000 + b'"}'
    content: Any = iter([body[:1000], body[1000:]]) if chunked else body
    answer = locked.http.post("/v1/videos", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_entity_too_large")


@pytest.mark.parametrize(("body", "status"), [
    ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
    ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 400),
    ({"content": b"\xff", "headers": {"content-type": "application/json"}}, 400),
    ({"json": [CIRCLE]}, 400),
    ({"json": {"prompt": None}}, 400),
    ({"json": {"prompt": 7}}, 400),
    ({"json": {"prompt": CIRCLE, "model": 7}}, 400),
    ({"content": b'{"prompt": "\\ud800"}', "headers": {"content-type": "application/json"}}, 400),
    ({"data": {f"name{number}": "x" for number in range(101)}}, 400),
    ({"files": {"prompt": ("a", b"x")}}, 400),
    ({"files": [("prompt", (None, b"x" * 140_000))]}, 400),
    ({"data": {"prompt": CIRCLE, "seed[a]": "1"}}, 400),
    ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
    ({"content": b"prompt", "headers": {"content-type": "text/plain"}}, 415),
    ({"content": b"prompt"}, 415),
    ({"json": {"prompt": CIRCLE}, "headers": {"idempotency-key": "x" * 256}}, 400),
], ids=range(16))  # fmt: skip
def test_a_body_that_is_no_request_is_refused_in_words(body: dict[str, Any], status: int, locked: Served):
    before = locked.service.table.counts()
    answer = locked.http.post("/v1/videos", **body)
    assert (answer.status_code, bool(answer.json()["error"]["message"])) == (status, True), answer.text
    assert locked.service.table.counts() == before


@pytest.mark.parametrize("body", [
    {"video": {"id": "\ud800"}}, {"extend": {"id": "video_\ud800"}}, {"loras": [{"path": "a", "sha256": "\ud800"}]},
    {"a\ud800": 1}, {"prompt": "\ud800"}, {"size": {"\ud800": 1}},
], ids=ascii)  # fmt: skip
def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(body: dict[str, Any], shared: Served):
    as_json = {"content": json.dumps({"prompt": CIRCLE, **body}), "headers": {"content-type": "application/json"}}
    form = 'multipart/form-data; charset=utf-7; boundary="x"'  # an encoding that can say it
    field = b'--x\r\ncontent-disposition: form-data; name="video[id]"\r\n\r\n+2AA-\r\n--x--\r\n'
    for sent in (as_json, {"content": field, "headers": {"content-type": form}}):
        answer = shared.http.post("/v1/videos", **sent)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value"), answer.text
        assert "half of a surrogate pair; send text as UTF-8" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/v1/nothing", 404), ("PUT", "/v1/videos", 405), ("POST", "/healthz", 405), ("POST", "/", 405),
    ("GET", "/v1/models/none", 404), ("OPTIONS", "/v1/videos", 405),
])  # fmt: skip
def test_an_unknown_address_is_an_error_object(method: str, path: str, status: int, shared: Served):
    answer = shared.http.request(method, path)
    assert (answer.status_code, bool(answer.json()["error"]["message"])) == (status, True)


def test_a_client_that_never_sends_its_request_is_cut_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(listening, "REQUEST_WAIT_S", 0.3)
    with running(tmp_path) as served:
        address = urlsplit(served.url)
        with socket.create_connection((address.hostname, address.port)) as silent, contextlib.suppress(ConnectionError):
            silent.sendall(b"GET / HTTP/1.1\r\nx: ")
            started = time.monotonic()
            silent.settimeout(10)
            assert silent.recv(10) == b""
            assert time.monotonic() - started < 5
        assert served.http.get("/healthz").status_code == 200
        time.sleep(0.5)  # a connection that was used waits no longer than one that was not
        assert served.http.get("/healthz").status_code == 200


def asgi(app: Any, messages: list[dict[str, Any]], wait_s: float, *, sends: bool = True) -> list[dict[str, Any]]:
    """What a client is sent that goes silent after some messages, or that takes no answer."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        if not sends:
            await asyncio.sleep(60)
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")], "query_string": b""}
    asyncio.run(Guards(app, None, wait_s=wait_s)(scope, receive, send))
    return sent


async def echo(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


def test_a_body_that_comes_too_slowly_is_408():
    sent = asgi(echo, [{"type": "http.request", "body": b"x", "more_body": True}], 0.1)
    assert sent[0]["status"] == 408
    assert asgi(echo, [{"type": "http.request", "body": b"x"}], 0.1)[0]["status"] == 200


def test_a_client_that_takes_no_answer_is_let_go():
    started = time.monotonic()
    assert asgi(echo, [{"type": "http.request", "body": b""}], 0.1, sends=False) == []
    assert time.monotonic() - started < 5


def test_a_reader_of_events_that_reads_nothing_holds_up_nobody(served: Served):
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port)) as silent:
        silent.sendall(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        served.gate.open()
        for _ in range(3):
            assert served.ended(served.make()["id"])["state"] == "completed"


def test_no_log_line_holds_a_prompt_or_a_token(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    def policy(request: Any) -> str | None:
        if "fail" in request.prompt:
            raise ValueError(request.prompt)
        return None

    with running(tmp_path, token=TOKEN, policy=policy) as served:
        served.gate.raises = ValueError("a secret circle")
        served.ended(served.make(prompt="a secret circle")["id"])
        assert served.http.post("/v1/videos", json={"prompt": "fail a secret"}).status_code == 400
        served.http.get("/v1/videos?after=secret")
        wait_for(lambda: served.service.worker.live is None)
    out, err = capfd.readouterr()
    assert "ValueError" in err and "secret" not in out + err and TOKEN not in out + err
