"""https with a certificate of one's own."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import httpx2
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from mutoscope.errors import RequestError
from mutoscope.server.listening import tls_context
from mutoscope.server.options import ServeOptions

from tests.runtime.server.processes import serving


def certified(folder: Path, *names: str) -> dict[str, str]:
    """A certificate for these names and its key; its authority is `authority.pem`."""
    authority = trustme.CA()
    made = authority.issue_cert(*names)
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    made.cert_chain_pems[0].write_to_path(str(folder / "certificate.pem"))
    made.private_key_pem.write_to_path(str(folder / "key.pem"))
    return {"tls_certificate": str(folder / "certificate.pem"), "tls_key": str(folder / "key.pem")}


def test_the_server_serves_https_and_nothing_else(tmp_path: Path):
    files = certified(tmp_path, "127.0.0.1")
    flags = (f"--tls-certificate={files['tls_certificate']}", f"--tls-key={files['tls_key']}")
    with serving(tmp_path / "data", *flags) as process:
        assert process.url.startswith("https://127.0.0.1:")
        trusted = ssl.create_default_context(cafile=str(tmp_path / "authority.pem"))
        assert httpx2.get(f"{process.url}/healthz", verify=trusted).json() == {"alive": True}
        with pytest.raises(httpx2.ConnectError):  # the client does not know the authority
            httpx2.get(f"{process.url}/healthz")
        with pytest.raises(httpx2.HTTPError):
            httpx2.get(f"{process.url}/healthz".replace("https", "http"))
        assert process.end() == 0


def test_a_certificate_that_cannot_be_used_is_refused_with_the_reason(tmp_path: Path):
    files, other = certified(tmp_path, "127.0.0.1"), tmp_path / "other"
    other.mkdir()
    shutil.copy(certified(other, "127.0.0.1")["tls_key"], tmp_path / "other.pem")
    key = load_pem_private_key(Path(files["tls_key"]).read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
    (tmp_path / "locked.pem").write_bytes(locked)
    (tmp_path / "text.pem").write_text("text")
    for name in ("other.pem", "locked.pem", "text.pem", "nowhere.pem"):
        options = ServeOptions(tls_certificate=files["tls_certificate"], tls_key=str(tmp_path / name))
        with pytest.raises(RequestError, match=f"tls_key='.*{name}' cannot be used: .+; name PEM files that belong"):
            tls_context(options)


def test_a_certificate_needs_its_key_and_no_unix_socket():
    for options in ({"tls_certificate": "c.pem"}, {"tls_key": "k.pem"}):
        with pytest.raises(RequestError, match="belong together"):
            ServeOptions(**options)
    with pytest.raises(RequestError, match="a Unix socket needs no TLS"):
        ServeOptions(tls_certificate="c.pem", tls_key="k.pem", uds="s")
