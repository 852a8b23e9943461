"""What is refused, as the clients of OpenAI's API understand it: a status, and an error object with words."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from http import HTTPStatus
from typing import Any

from ..errors import MutoscopeError
from ..policy import PolicyError
from ..request import VideoRequest

# Of clients that would repeat a request after 408, 409, 429 and 5xx, where that cannot help.
NO_RETRY = {"x-should-retry": "false"}

_NAMES = "|".join(each.name for each in fields(VideoRequest))


@dataclass
class RefusedError(Exception):
    """An answer that is an error."""

    status: int
    code: str
    message: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """What the client is told."""
        return error_body(self.status, self.code, self.message, self.param)


def error_body(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's API writes it."""
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def job_error(error: MutoscopeError) -> dict[str, Any]:
    """Why a video failed, or was refused: code, message and the parameter at fault, if it is one."""
    message = str(error)
    named = re.match(rf"({_NAMES}) ", message)
    code = "refused_by_policy" if isinstance(error, PolicyError) else _snake(type(error).__name__)
    return {"code": code, "message": message, "param": named[1] if named else None}


def bad_request(error: MutoscopeError) -> RefusedError:
    """A request that cannot be met."""
    facts = job_error(error)
    code = "invalid_value" if facts["code"] == "request" else facts["code"]
    return RefusedError(HTTPStatus.BAD_REQUEST, code, facts["message"], facts["param"])


def not_found(what: str, id: str) -> RefusedError:
    """No such video or model."""
    return RefusedError(HTTPStatus.NOT_FOUND, "not_found", f"there is no {what} {id[:80]!r}", f"{what}_id")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Error")).lower()
