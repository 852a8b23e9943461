"""The routes: OpenAI's videos API, our own beside it, and the page. Turns HTTP into calls of `Service`, and back."""

from __future__ import annotations

import asyncio
import hmac
import mimetypes
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from ..terminal import note
from ..version import __version__
from .body import read_asked, read_json
from .describing import describe_parameters
from .guards import COOKIE, Guards, session_of
from .jobs import FINISHED, STATES, Job
from .kling import Kling
from .metrics import CONTENT_TYPE, exposition
from .options import KlingKeys
from .reading import Asked, changing, going_on
from .refusals import NO_RETRY, RefusedError, error_body, invalid_value, not_found
from .service import Origin, Service
from .stream import event_stream

PAGE = Path(__file__).with_name("page")
MOST_LISTED = 100
CLEANING_S = 60.0
NOT_MADE = "this server makes videos from text, pictures and videos; it has no {}"

Handler = Callable[[Request], Awaitable[Response]]


def make_app(
    service: Service,
    token: str | None = None,
    hosts: frozenset[str] | None = frozenset(),
    kling: KlingKeys | None = None,
) -> ASGIApp:
    """The whole server as an ASGI application.

    Args:
        token: what clients must send, if anything.
        hosts: names that lead to it, beside those of this machine; any where it is `None`.
        kling: what clients of Kling's API sign with; it is not served without.
    """
    mimetypes.add_type("text/javascript", ".js")  # Windows may have another, with which no browser runs the page
    routes = _Routes(service, token)
    adapter = None if kling is None else Kling(service, kling)
    app = Starlette(
        routes=[*(adapter.table() if adapter else ()), *routes.table()],
        exception_handlers={RefusedError: _refused, HTTPException: _http_error, Exception: _failed},
        lifespan=routes.lifespan,
        max_body_size=service.options.max_body,
    )
    return Guards(
        app,
        token,
        hosts,
        open_paths=("/v1/session", *(adapter.paths if adapter else ())),
        max_body=service.options.max_body,
    )


class _Routes:
    def __init__(self, service: Service, token: str | None) -> None:
        self._service, self._token = service, token

    def table(self) -> list[BaseRoute]:
        """Fixed paths before those with an id in them."""
        get, post = ["GET"], ["POST"]
        return [
            Route("/v1/videos", self.create, methods=post),
            Route("/v1/videos", self.list, methods=get),
            Route("/v1/videos/plan", self.plan, methods=post),
            Route("/v1/videos/edits", self.edit, methods=post),
            Route("/v1/videos/extensions", self.extend, methods=post),
            *[
                Route(f"/v1/videos/characters{rest}", _not_made("characters"), methods=["GET", "POST"])
                for rest in ("", "/{rest:path}")
            ],
            Route("/v1/videos/{id}", self.retrieve, methods=get),
            Route("/v1/videos/{id}", self.delete, methods=["DELETE"]),
            Route("/v1/videos/{id}/content", self.content, methods=get),
            Route("/v1/videos/{id}/remix", self.remix, methods=post),
            Route("/v1/videos/{id}/again", self.again, methods=post),
            Route("/v1/videos/{id}/cancel", self.cancel, methods=post),
            Route("/v1/videos/{id}/recipe", self.recipe, methods=get),
            Route("/v1/videos/{id}/events", self.video_events, methods=get),
            Route("/v1/events", self.events, methods=get),
            Route("/v1/models", self.models, methods=get),
            Route("/v1/models/{id}", self.model, methods=get),
            Route("/v1/queue", self.queue, methods=get),
            Route("/v1/session", self.session, methods=post),
            Route("/v1/session", self.end_session, methods=["DELETE"]),
            Route("/healthz", _alive, methods=get),
            Route("/readyz", self.ready, methods=get),
            Route("/metrics", self.metrics, methods=get),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ]

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """The event log learns in which loop it has readers, and old videos are deleted from time to time."""
        self._service.events.attach()
        cleaning = asyncio.create_task(self._delete_old())
        yield
        cleaning.cancel()

    async def _delete_old(self) -> None:
        while True:
            try:
                await run_in_threadpool(self._service.delete_old)
            except Exception as error:  # a full disk, for example; the next time may be better
                note(f"old videos could not be deleted: {type(error).__name__}")
            await asyncio.sleep(CLEANING_S)

    async def create(self, request: Request) -> Response:
        return await self._create(request, await read_asked(request))

    async def edit(self, request: Request) -> Response:
        return await self._create(request, changing(await read_asked(request)))

    async def extend(self, request: Request) -> Response:
        return await self._create(request, going_on(await read_asked(request)))

    async def _create(self, request: Request, asked: Asked) -> Response:
        key = request.headers.get("idempotency-key")
        if key is not None and not 1 <= len(key) <= 255:
            raise RefusedError(
                HTTPStatus.BAD_REQUEST, "invalid_value", "an Idempotency-Key must have 1 to 255 characters"
            )
        return await self._answer(self._service.create, asked, Origin(idempotency_key=key))

    async def list(self, request: Request) -> Response:
        query = request.query_params
        order, states = query.get("order", "desc"), tuple(filter(None, query.get("state", "").split(",")))
        if order not in ("asc", "desc"):
            raise invalid_value("order", "order must be asc or desc")
        if not set(states) <= set(STATES):
            raise invalid_value("state", f"state must be one or more of {', '.join(STATES)}")
        limit = query.get("limit", "20")
        if not limit.isdecimal() or len(limit) > 3 or not 1 <= int(limit) <= MOST_LISTED:
            words = f"limit must be a whole number from 1 to {MOST_LISTED}"
            raise invalid_value("limit", words)

        def found() -> dict[str, Any]:
            page = self._service.page(
                query.get("after"), int(limit) + 1, newest_first=order == "desc", states=states or STATES
            )
            shown = self._service.videos(page[: int(limit)])
            return {
                "object": "list",
                "data": shown,
                "first_id": shown[0]["id"] if shown else None,
                "last_id": shown[-1]["id"] if shown else None,
                "has_more": len(page) > int(limit),
            }

        return JSONResponse(await run_in_threadpool(found))

    async def retrieve(self, request: Request) -> Response:
        return await self._answer(self._service.get, request.path_params["id"])

    async def delete(self, request: Request) -> Response:
        id = request.path_params["id"]
        await run_in_threadpool(self._service.delete, id)
        return JSONResponse({"id": id, "object": "video.deleted", "deleted": True})

    async def content(self, request: Request) -> Response:
        variant = request.query_params.get("variant", "video")
        found = await run_in_threadpool(self._service.content, request.path_params["id"], variant)
        headers = {"etag": f'"{found.etag}"', "cache-control": "private, no-cache"}
        return FileResponse(
            found.path,
            media_type=found.media_type,
            filename=found.name,
            headers=headers,
            content_disposition_type="inline",
        )

    async def remix(self, request: Request) -> Response:
        given = await read_json(request, {"prompt": str})
        if "prompt" not in given:
            raise invalid_value("prompt", "prompt is missing; say what to show instead")
        return await self._answer(self._service.remix, request.path_params["id"], given["prompt"])

    async def again(self, request: Request) -> Response:
        given = await read_json(request, {"seed": int})
        return await self._answer(self._service.again, request.path_params["id"], given.get("seed"))

    async def cancel(self, request: Request) -> Response:
        return await self._answer(self._service.cancel, request.path_params["id"])

    async def plan(self, request: Request) -> Response:
        plan = await run_in_threadpool(self._service.plan, await read_asked(request))
        return JSONResponse({"object": "plan", "plan": plan.to_dict(), "notes": list(plan.notes)})

    async def recipe(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._service.recipe, request.path_params["id"]))

    async def video_events(self, request: Request) -> Response:
        id, last = request.path_params["id"], request.headers.get("last-event-id")
        job = await run_in_threadpool(self._service.get, id)
        seen = self._service.events.position(last)
        if job.state in FINISHED and seen is not None and not self._service.events.since(seen, id):
            return Response(status_code=HTTPStatus.NO_CONTENT)  # a browser connects for ever otherwise
        return _stream(event_stream(self._service, last, id))

    async def events(self, request: Request) -> Response:
        return _stream(event_stream(self._service, request.headers.get("last-event-id")))

    async def models(self, _: Request) -> Response:
        def all_of_them() -> list[dict[str, Any]]:
            return [self._model_object(name) for name in self._service.studio.bundles]

        return JSONResponse({"object": "list", "data": await run_in_threadpool(all_of_them)})

    async def model(self, request: Request) -> Response:
        name = request.path_params["id"]
        if name not in self._service.studio.bundles:
            raise not_found("model", name)
        return JSONResponse(await run_in_threadpool(self._model_object, name))

    async def queue(self, _: Request) -> Response:
        return JSONResponse(
            {"object": "queue", **await run_in_threadpool(self._service.queue), "waits_because": self._waits_because()}
        )

    async def session(self, request: Request) -> Response:
        given = await read_json(request, {"token": str})
        if self._token is None:
            return JSONResponse({"token_needed": False})
        if not hmac.compare_digest(given.get("token", "").strip().encode(), self._token.encode()):
            raise RefusedError(HTTPStatus.UNAUTHORIZED, "invalid_api_key", "this is not the server's token", "token")
        answer = JSONResponse({"token_needed": True})
        answer.set_cookie(
            COOKIE, session_of(self._token), httponly=True, samesite="strict", secure=request.url.scheme == "https"
        )
        return answer

    async def end_session(self, _: Request) -> Response:
        answer = JSONResponse({"token_needed": self._token is not None})
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    async def ready(self, _: Request) -> Response:
        reason = self._waits_because()
        status = HTTPStatus.OK if reason is None else HTTPStatus.SERVICE_UNAVAILABLE
        return JSONResponse({"ready": reason is None, "reason": reason, "version": __version__}, status)

    async def metrics(self, _: Request) -> Response:
        return Response(await run_in_threadpool(exposition, self._service), media_type=CONTENT_TYPE)

    def _waits_because(self) -> str | None:
        if not self._service.worker.alive:
            return "the server ends"
        return "the disk is almost full" if self._service.studio.disk_is_full else None

    def _model_object(self, name: str) -> dict[str, Any]:
        bundles = self._service.studio.bundles
        manifest = bundles[name].manifest
        demonstration = manifest.demonstration
        return {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "mutoscope",
            "default": name == next(iter(bundles)),
            "family": manifest.family,
            "bundle_sha256": bundles[name].sha256,
            "understands": demonstration.description if demonstration else None,
            "has_previews": manifest.preview is not None,
            "parameters": describe_parameters(manifest, self._service.intake.loras_of(name)),
        }

    async def _answer(self, action: Callable[..., Job], *arguments: Any) -> Response:
        def done() -> tuple[Job, dict[str, Any]]:
            job = action(*arguments)
            return job, self._service.video(job)

        job, shown = await run_in_threadpool(done)
        headers = {} if job.state in FINISHED else {"openai-poll-after-ms": str(self._poll_after_ms(shown))}
        return JSONResponse(shown, headers=headers)

    def _poll_after_ms(self, shown: dict[str, Any]) -> int:
        """A step's time, where it is known: before that nothing new can be seen."""
        left_s: float | None = shown.get("seconds_left")
        steps_left: int = shown.get("steps", 0) - shown.get("step", 0)
        if left_s is None or not steps_left:
            return 1000 if shown["queue_position"] else 250
        return min(5000, max(250, round(left_s / steps_left * 1000)))


def _stream(lines: AsyncIterator[str]) -> Response:
    return StreamingResponse(lines, media_type="text/event-stream", headers={"x-accel-buffering": "no"})


def _not_made(what: str) -> Handler:
    async def answer(_: Request) -> Response:
        status = HTTPStatus.NOT_IMPLEMENTED
        raise RefusedError(status, "not_implemented", NOT_MADE.format(what), headers=NO_RETRY)

    return answer


async def _alive(_: Request) -> Response:
    return JSONResponse({"alive": True})


async def _refused(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, RefusedError)
    return JSONResponse(refusal.body, refusal.status, headers=refusal.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {
        HTTPStatus.NOT_FOUND: "this address does not exist; docs/server.md lists all addresses",
        HTTPStatus.METHOD_NOT_ALLOWED: f"this address does not accept {request.method}",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "the body of the request is too large",
    }
    status = HTTPStatus(error.status_code)
    code = status.phrase.lower().replace(" ", "_")
    return JSONResponse(error_body(status, code, words.get(status, error.detail)), status, headers=error.headers)


async def _failed(_: Request, __: Exception) -> Response:
    words = "the server failed; its log names the kind of error"
    return JSONResponse(error_body(500, "internal_error", words), HTTPStatus.INTERNAL_SERVER_ERROR)
