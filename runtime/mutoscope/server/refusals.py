"""What is refused, as the clients of OpenAI's API understand it: a status, and an error object with words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from ..errors import MutoscopeError, RequestError
from ..policy import PolicyError

# Of clients that would repeat a request after 408, 409, 429 and 5xx, where that cannot help.
NO_RETRY = {"x-should-retry": "false"}


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
    message, code, param = str(error), _snake(type(error).__name__), None
    if isinstance(error, RequestError):
        code = "refused_by_policy" if isinstance(error, PolicyError) else "invalid_value"
        # As all refused values are told.
        named = re.match(r"(?:the )?([a-z_]+) (?:must|is|are|and|has|may|does) ", message)
        param = named[1] if named else None
    return {"code": code, "message": message, "param": param}


def bad_request(error: MutoscopeError, called: Mapping[str, str] = MappingProxyType({})) -> RefusedError:
    """A request that cannot be met.

    Args:
        called: what the client calls a parameter, where that is not our name.
    """
    facts = job_error(error)
    ours, message = facts["param"], facts["message"]
    theirs = called.get(ours, ours)
    message = message if theirs == ours else message.replace(ours, theirs, 1)
    return RefusedError(HTTPStatus.BAD_REQUEST, facts["code"], message, theirs)


def invalid_value(name: str, message: str) -> RefusedError:
    """A parameter has a value that it does not take."""
    return RefusedError(HTTPStatus.BAD_REQUEST, "invalid_value", message, name)


def not_found(what: str, id: str) -> RefusedError:
    """No such video or model."""
    return RefusedError(HTTPStatus.NOT_FOUND, "not_found", f"there is no {what} {id[:80]!r}", f"{what}_id")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Error")).lower()
