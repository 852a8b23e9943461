"""The body of a request, within limits: a form of either encoding, or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from .reading import MOST_FILES, Asked, from_form, from_json, refuse_long
from .refusals import RefusedError, invalid_value

MOST_FIELDS = 100

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


async def read_asked(request: Request) -> Asked:
    """What a client asks for.

    Raises:
        RefusedError: the body is none of these, or has what no request has.
    """
    kind = _kind(request)
    if kind not in FORMS:
        return from_json(await read_object(request))
    limits = {
        "max_files": MOST_FILES,
        "max_fields": MOST_FIELDS,
        "max_part_size": sys.maxsize,  # of text, which may be a file; the body as a whole has a limit
    }
    async with request.form(**limits) as form:
        sent = form.multi_items()
        pairs = [(name, value) for name, value in sent if isinstance(value, str)]
        _refuse_lone_surrogates([*pairs, *(name for name, _ in sent)])
        return from_form(pairs, [(name, await value.read()) for name, value in sent if isinstance(value, UploadFile)])


async def read_object(request: Request) -> dict[str, Any]:
    """A JSON object with any names.

    Raises:
        RefusedError: the body is none.
    """
    values = await _json(request, _kind(request))
    if not isinstance(values, dict):
        words = 'the body must be a JSON object, such as {"prompt": ...}'
        raise RefusedError(HTTPStatus.BAD_REQUEST, "invalid_json", words)
    return values


async def read_json(request: Request, kinds: Mapping[str, type]) -> dict[str, Any]:
    """The values of a small JSON object; no body is an empty one.

    Args:
        kinds: the type of each name that it may have.

    Raises:
        RefusedError: it is no such object.
    """
    values = await _json(request, _kind(request) or "application/json") if await request.body() else {}
    if not isinstance(values, dict) or not set(values) <= set(kinds):
        words = f"the body must be a JSON object with: {', '.join(kinds)}"
        raise RefusedError(HTTPStatus.BAD_REQUEST, "invalid_json", words)
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        if type(value) is not kinds[name]:
            words = f"{name} must be {'text' if kinds[name] is str else 'a whole number'}"
            raise invalid_value(name, words)
        refuse_long(name, value)
    return given


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _json(request: Request, kind: str) -> Any:
    if kind != "application/json":
        words = f"the body must be application/json, or {' or '.join(FORMS)}; got {kind[:80]!r}"
        raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", words)
    try:
        values = json.loads(await request.body())
        _refuse_lone_surrogates(values)
        return values
    except (ValueError, RecursionError):
        raise RefusedError(HTTPStatus.BAD_REQUEST, "invalid_json", "the body is not valid JSON") from None


def _refuse_lone_surrogates(values: Any) -> None:
    """Escapes in JSON and some encodings of forms can say them; no answer and no database takes such text."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RefusedError(
            HTTPStatus.BAD_REQUEST, "invalid_value", "the body has half of a surrogate pair; send text as UTF-8"
        ) from None
