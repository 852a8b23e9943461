"""What `mutoscope serve` can be told. Knows no HTTP, so that the command line can name its flags without it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar

from ..errors import RequestError
from ..values import checks
from ..values.parameters import BYTES, parameter

TOKEN_VARIABLE = "MUTOSCOPE_TOKEN"
LEAST_TOKEN_CHARACTERS = 16
KLING_VARIABLE = "MUTOSCOPE_KLING_KEYS"
LEAST_SECRET_CHARACTERS = 32  # HS256 signs with 256 bits, and its key may not have fewer (RFC 7518, section 3.2)


@dataclass(frozen=True)
class KlingKeys:
    """What a client of Kling's API has: the name that it goes by, and what it signs with."""

    access: str
    secret: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How to serve.

    Raises:
        RequestError: a value is out of its range, or two contradict each other.
    """

    TITLE: ClassVar[str] = "server"

    host: str = parameter("address to listen on; any other than this machine's own needs a token", "127.0.0.1")
    port: int = parameter("port to listen on; 0 takes a free one, which is printed", 8000, unit="PORT")
    uds: str | None = parameter("listen on a Unix socket at this path instead, for its owner alone", unit="PATH")
    data: str | None = parameter(
        "folder for the queue and the videos, for its owner alone (default: in the user's data folder)", unit="DIR"
    )
    token_file: str | None = parameter(
        f"file with the token that every client must send; or set {TOKEN_VARIABLE}", unit="FILE"
    )
    tls_certificate: str | None = parameter(
        "serve https with this certificate, and those up to its authority, in PEM; needs the key too", unit="FILE"
    )
    tls_key: str | None = parameter("file with the private key of the certificate, in PEM", unit="FILE")
    kling_keys: str | None = parameter(
        "serve Kling's API too, to whoever has the keys in this file: an access key and a secret key "
        f"with white space between them; or set {KLING_VARIABLE}",
        unit="FILE",
    )
    loras: str | None = parameter(
        "folder of LoRAs that clients may name in their requests (default: they may name none)", unit="DIR"
    )
    queue: int = parameter("videos that may wait or run at the same time; more are refused with 429", 100, unit="N")
    attempts: int = parameter("how often a video is begun before it counts as failed", 3, unit="N")
    keep: float | None = parameter(
        "delete finished, failed and cancelled videos after this many days (default: keep them)", unit="DAYS"
    )
    max_body: int = parameter(
        "largest body of a request; a larger one is refused with 413", 16 * 10**6, unit="SIZE", form=BYTES
    )
    free_disk: int = parameter(
        "space to leave free on the disk; below it, requests are refused with 507 and the queue waits",
        10**9,
        unit="SIZE",
        form=BYTES,
    )

    def __post_init__(self) -> None:
        checks.whole("port", self.port, minimum=0, maximum=65535)
        checks.whole("queue", self.queue, minimum=1, maximum=10**6)
        checks.whole("attempts", self.attempts, minimum=1, maximum=1000)
        if self.keep is not None:
            checks.real("keep", self.keep, minimum=1e-6, maximum=1e5)
        for name in ("max_body", "free_disk"):
            checks.byte_count(name, getattr(self, name))
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise RequestError("tls_certificate and tls_key belong together; give both, or neither")
        if self.tls_certificate is not None and self.uds is not None:
            raise RequestError("uds and tls_certificate are both given; a Unix socket needs no TLS, so leave it out")

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can reach the server."""
        if self.uds is not None or self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def token(self, environment: Mapping[str, str] = os.environ) -> str | None:
        """The token that clients must send, or `None` where none is asked for.

        Raises:
            RequestError: it is missing beyond this machine, too short, or its file cannot be read.
        """
        found, source = self._secret("token_file", TOKEN_VARIABLE, environment)
        if not found and self.token_file is None:
            if not self.is_local:
                raise RequestError(
                    f"host={self.host!r} lets other machines in, so a token is needed; write one into a file and give "
                    f"it as token_file, or set {TOKEN_VARIABLE}"
                )
            return None
        if len(found) < LEAST_TOKEN_CHARACTERS or not found.isascii() or not found.isprintable() or " " in found:
            raise RequestError(
                f"the token in {source} must have at least {LEAST_TOKEN_CHARACTERS} characters, in ASCII and without "
                'spaces; make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        return found

    def kling(self, environment: Mapping[str, str] = os.environ) -> KlingKeys | None:
        """The keys of Kling's API, or `None` where it is not to be served.

        Raises:
            RequestError: they are not two, the secret one is too short, or their file cannot be read.
        """
        found, source = self._secret("kling_keys", KLING_VARIABLE, environment)
        if not found and self.kling_keys is None:
            return None
        keys = found.split()
        if len(keys) != 2 or not found.isascii() or len(keys[1]) < LEAST_SECRET_CHARACTERS:
            raise RequestError(
                f"{source} must hold two keys in ASCII with white space between them: an access key, and a secret key "
                f"of at least {LEAST_SECRET_CHARACTERS} characters; make each with: "
                'python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        return KlingKeys(*keys)

    def _secret(self, name: str, variable: str, environment: Mapping[str, str]) -> tuple[str, str]:
        """The text of the file that a parameter names, or else of a variable, and which of them it is from."""
        path = getattr(self, name)
        if path is None:
            return environment.get(variable, "").strip(), variable
        try:
            return Path(path).read_text("utf-8").strip(), f"the file {path}"
        except (OSError, ValueError) as error:
            raise RequestError(f"{name}={path!r} cannot be read: {error}") from error
