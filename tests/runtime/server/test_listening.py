"""Where the server listens, what it says of that, when it ends, and what it refuses before it begins."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from mutoscope.cli import main
from mutoscope.errors import OutputError, RequestError
from mutoscope.server.listening import address_of, listen
from mutoscope.server.options import TOKEN_VARIABLE, ServeOptions

from tests.runtime.server.processes import serving

POSIX = pytest.mark.skipif(os.name != "posix", reason="Unix sockets and signals")
TOKEN = "a-token-of-32-characters-or-more"


@POSIX
def test_a_unix_socket_is_for_its_owner_and_goes_with_the_server(tmp_path: Path):
    path = tmp_path / "socket"
    with serving(tmp_path / "data", "--uds", str(path)) as server:
        assert server.address["uds"] == str(path) and server.url.startswith("http+unix://%2F")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://any.name") as http:
            assert http.get("/readyz").json()["ready"] is True
        again = subprocess.run(
            [sys.executable, "-m", "mutoscope", "serve", "--uds", str(path), "--data", str(tmp_path / "other")],
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert again.returncode == 2 and "another server listens there already" in again.stderr
        assert server.end() == 0
    assert not path.exists()


@POSIX
def test_a_socket_that_a_killed_server_left_is_replaced(tmp_path: Path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listen(ServeOptions(uds=str(path))) as found:
        assert address_of(found)["uds"] == str(path)
    path.unlink()
    path.write_text("mine")
    with pytest.raises(OutputError, match="cannot listen on uds="):
        listen(ServeOptions(uds=str(path)))
    assert path.read_text() == "mine"
    with pytest.raises(OutputError, match="short path"):
        listen(ServeOptions(uds=str(tmp_path / ("x" * 200))))


def test_a_free_port_is_taken_and_a_taken_one_refused():
    with listen(ServeOptions(port=0)) as found:
        found.listen()
        port = found.getsockname()[1]
        assert address_of(found) == {"url": f"http://127.0.0.1:{port}"}
        with pytest.raises(OutputError, match=f"port {port}.*choose another port, or 0"):
            listen(ServeOptions(port=port))
    with listen(ServeOptions(host="0.0.0.0", port=0)) as found:
        assert address_of(found)["url"].startswith("http://127.0.0.1:")
    with pytest.raises(OutputError, match=r"cannot listen on name\.invalid"):
        listen(ServeOptions(host="name.invalid"))


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_address_of_ipv6_stands_in_brackets():
    try:
        found = listen(ServeOptions(host="::1", port=0))
    except OutputError as error:
        pytest.skip(str(error))
    with found:
        assert address_of(found)["url"].startswith("http://[::1]:")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_beyond_this_machine_a_token_is_needed(host: str, tmp_path: Path):
    options = ServeOptions(host=host)
    with pytest.raises(RequestError, match="lets other machines in, so a token is needed"):
        options.token({})
    assert options.token({TOKEN_VARIABLE: f"{TOKEN}\n"}) == TOKEN
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert ServeOptions(host=host, token_file=str(tmp_path / "token")).token({}) == TOKEN


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_on_this_machine_a_token_is_asked_for_only_where_there_is_one(host: str):
    assert ServeOptions(host=host).token({}) is None
    assert ServeOptions(host=host).token({TOKEN_VARIABLE: TOKEN}) == TOKEN
    assert ServeOptions(host="0.0.0.0", uds="socket").token({}) is None


@pytest.mark.parametrize("token", ["short", "a token with spaces in it", "ein-Zeichen-zu-viel-ü", "", "x" * 15])
def test_a_poor_token_is_refused(token: str, tmp_path: Path):
    (tmp_path / "token").write_text(token, encoding="utf-8")
    with pytest.raises(RequestError, match="must have at least 16 characters"):
        ServeOptions(token_file=str(tmp_path / "token")).token({})
    with pytest.raises(RequestError, match="cannot be read"):
        ServeOptions(token_file=str(tmp_path / "none")).token({})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port=65536"], "--port must be a whole number from 0 to 65535"),
        (["--queue", "0"], "--queue must be"),
        (["--attempts", "0"], "--attempts must be"),
        (["--keep", "-1"], "--keep must be"),
        (["--max-body", "0"], "--max-body"),
        (["--host", "0.0.0.0"], "--token-file"),
        (["--policy", "nothing"], "policy must be a dotted name"),
        (["none"], "there is no"),
        (["a=b=c", "a=d"], "there is no"),
        (["=folder"], "write NAME=BUNDLE"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    port = [] if arguments[0].startswith("--port") else ["--port", "0"]
    assert main(["serve", *port, "--data", str(tmp_path / "data"), *arguments]) in (2, 3)
    assert message in capsys.readouterr().err


@POSIX
def test_a_folder_that_others_can_read_and_one_in_use_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    assert main(["serve", "--data", str(tmp_path / "open")]) == 2
    assert "chmod 700" in capsys.readouterr().err
    with serving(tmp_path / "used") as server:
        assert stat.S_IMODE((tmp_path / "used").stat().st_mode) == 0o700
        assert main(["serve", "--port", "0", "--data", str(tmp_path / "used")]) == 2
        assert "another server uses --data" in capsys.readouterr().err
        assert server.end() == 0
    (tmp_path / "file").write_text("")
    assert main(["serve", "--data", str(tmp_path / "file")]) == 2


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order_and_closes_streams(number: int, tmp_path: Path):
    with serving(tmp_path / "data") as server, httpx2.stream("GET", f"{server.url}/v1/events") as answer:
        lines = answer.iter_lines()
        next(lines)
        started = time.monotonic()
        server.process.send_signal(number)
        assert server.process.wait(60) == 0
        assert time.monotonic() - started < 10
        list(lines)


@POSIX
@pytest.mark.parametrize("kind", ["a pipe", "a socket", "no pipe"])
def test_it_ends_with_its_parent_where_standard_input_is_a_pipe(kind: str, tmp_path: Path):
    """Node gives its children sockets."""
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    handles = {"a pipe": reading, "a socket": theirs.fileno(), "no pipe": subprocess.DEVNULL}
    command = [sys.executable, "-m", "mutoscope", "serve", "--port", "0", "--data", str(tmp_path / "data")]
    with subprocess.Popen(command, stdin=handles[kind], stdout=subprocess.PIPE, text=True) as process:
        try:
            os.close(reading)
            theirs.close()
            assert process.stdout is not None and process.stdout.readline()
            os.close(writing)
            ours.close()
            if kind == "no pipe":
                time.sleep(0.5)
                assert process.poll() is None
            else:
                assert process.wait(60) == 0
        finally:
            process.kill()


def test_several_models_have_names_and_the_first_is_the_default(tmp_path: Path):
    from mutoscope.builtin import bundle_path

    (tmp_path / "second").symlink_to(bundle_path())
    with serving(tmp_path / "data", f"first={bundle_path()}", f"other={tmp_path / 'second'}") as server:
        models = httpx2.get(f"{server.url}/v1/models").json()["data"]
        assert [(model["id"], model["default"]) for model in models] == [("first", True), ("other", False)]
        asked = {
            "prompt": "a red circle moving right on a black background",
            "height": 32,
            "width": 32,
            "num_frames": 1,
        }
        made = [
            httpx2.post(f"{server.url}/v1/videos", json=asked | more).json()
            for more in ({"num_inference_steps": 1}, {"num_inference_steps": 1, "model": "other"})
        ]
        assert [video["model"] for video in made] == ["first", "other"]
        for video in made:
            while (now := httpx2.get(f"{server.url}/v1/videos/{video['id']}").json())["state"] in ("queued", "running"):
                time.sleep(0.05)
            assert now["state"] == "completed"
