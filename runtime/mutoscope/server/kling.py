"""Kling's API for videos from text or a picture, as versions 1.x to 3.0 have it: log-in, envelope and names.

Turns its requests into those of our own, and jobs into its tasks. Knows nothing of how videos are queued or made.
"""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import jwt
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import URL
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ..bundle.manifest import Manifest
from ..request import FILES
from .body import read_object
from .jobs import CANCELLED, COMPLETED, FAILED, QUEUED, RUNNING, Job
from .options import KlingKeys
from .reading import from_base64, from_json
from .refusals import RefusedError, invalid_value, not_found
from .service import Origin, Service
from .video_object import DAY_S, seconds_of

TEXT, IMAGE = "/v1/videos/text2video", "/v1/videos/image2video"
OURS = "/v1/videos"  # beside Kling's
NOT_MADE = ("multi-image2video", "multi-elements", "omni-video", "video-extend", "lip-sync", "effects")
SKEW_S = 5.0  # by which the clock of a client may differ
MOST_PAGES, MOST_ON_A_PAGE = 1000, 500
EXTERNAL = "kling:"  # before the ids that clients choose, among the idempotency keys

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_STATUS = {
    QUEUED: "submitted", RUNNING: "processing", COMPLETED: "succeed", FAILED: "failed", CANCELLED: "failed",
}  # fmt: skip
_CODES = {
    "authorization_missing": 1001, "authorization_invalid": 1002, "authorization_too_early": 1003,
    "authorization_expired": 1004, "unknown_address": 1202, "refused_by_policy": 1301,
}  # fmt: skip
_CODES_BY_STATUS = {400: 1201, 404: 1203, 422: 1201, 429: 1303}
_NO_MODEL = "no model here takes it; leave it out, and say in the prompt what the video shows"
_PICTURES = {"image": "image", "image_tail": "last_image"}  # what it calls them, and we
_REFUSED = {
    "callback_url": "this server never connects to an address that a client names; leave it out, and ask for the task "
    "until it has ended",
    "sound": "the videos have no sound; leave it out, or say off",
    "mode": "there is one quality; leave it out, or say std, and ask for more with num_inference_steps",
    "camera_control": "no model here has it; say in the prompt how the camera moves",
    "watermark_info": "whoever runs the server decides on marks; leave it out",
    **dict.fromkeys(("multi_shot", "shot_type", "multi_prompt"), "a video has one prompt here; leave it out"),
    **dict.fromkeys(("voice_list", "element_list"), _NO_MODEL),
    **dict.fromkeys(("image_list", "static_mask", "dynamic_masks", "video_list"), _NO_MODEL),
}
_HARMLESS = {"sound": ["off"], "mode": ["std"]}
_HARMLESS_WITH_TAIL = {"sound": ["off"], "mode": ["std", "pro"]}  # Kling itself asks for pro there
_LIKE_THE_MODEL = 0.05  # so near to the shape of the model's own size, that size is meant

Action = Callable[[Request], Awaitable[Any]]


class Kling:
    """The routes of Kling's API. Each but that of a video checks a signed log-in; the video's link is signed itself."""

    paths = (TEXT, IMAGE, *(f"/v1/videos/{name}" for name in NOT_MADE))

    def __init__(self, service: Service, keys: KlingKeys) -> None:
        self._service, self._keys = service, keys

    def table(self) -> list[BaseRoute]:
        """To stand before the routes of OpenAI's API, which would take `text2video` for the id of a video."""
        known: list[BaseRoute] = [Route("/account/costs", self._answered(self.costs), methods=["GET"])]
        for tasks in (TEXT, IMAGE):
            known += [
                Route(tasks, self._answered(self.create), methods=["POST"]),
                Route(tasks, self._answered(self.list), methods=["GET"]),
                Route(tasks + "/{id}/video.mp4", self.content, methods=["GET"], name="kling_video"),
                # Names that clients give may have slashes.
                Route(tasks + "/{id:path}", self._answered(self.retrieve), methods=["GET"]),
            ]
        rest = self._answered(_not_made)
        ends = ("", "/{_:path}")
        return [*known, *(Route(path + end, rest, methods=_METHODS) for path in self.paths for end in ends)]

    async def create(self, request: Request) -> Any:
        """A task that was queued."""
        given, path = await read_object(request), request.url.path

        def created() -> Job:
            manifest = self._service.intake.model(_text(given, "model_name"))[1].manifest
            external = _text(given, "external_task_id")
            key = None if external is None else EXTERNAL + external
            asked = from_json(_in_our_words(given, manifest, with_pictures=path == IMAGE))
            asked = replace(asked, called={ours: theirs for theirs, ours in _PICTURES.items()})
            return self._service.create(asked, Origin(idempotency_key=key))

        return self._task(await run_in_threadpool(created), request)

    async def list(self, request: Request) -> Any:
        """One page of all tasks, the newest first."""
        number = _whole(request, "pageNum", 1, MOST_PAGES)
        size = _whole(request, "pageSize", 30, MOST_ON_A_PAGE)
        skip = (number - 1) * size
        jobs = await run_in_threadpool(lambda: self._service.page(None, size, newest_first=True, skip=skip))
        return [self._task(job, request) for job in jobs]

    async def retrieve(self, request: Request) -> Any:
        """One task, by its id or by the name that its client gave it."""
        return self._task(await run_in_threadpool(self._found, request.path_params["id"]), request)

    async def costs(self, _: Request) -> Any:
        """Clients look here for what they have paid for."""
        return {
            "code": 0,
            "msg": "videos cost nothing here, so there are no packs",
            "resource_pack_subscribe_infos": [],
        }

    async def content(self, request: Request) -> Response:
        """The file of a finished task, for whoever has the link."""
        id = request.path_params["id"]
        try:
            self._read(request.query_params.get("token", ""), audience="video", subject=id)
            found = await run_in_threadpool(self._service.content, id, "video")
        except RefusedError as refusal:
            return _refused(refusal)
        return FileResponse(
            found.path, media_type=found.media_type, filename=found.name, content_disposition_type="inline"
        )

    def _found(self, id: str) -> Job:
        table = self._service.table
        job = table.get(id) or table.get_keyed(EXTERNAL + id)
        if job is None:
            raise not_found("video", id)
        return job

    def _answered(self, action: Action) -> Action:
        async def answer(request: Request) -> Response:
            try:
                self._log_in(request)
                data = await action(request)
            except RefusedError as refusal:
                return _refused(refusal)
            except HTTPException as error:  # such as a body that is too large
                return _refused(RefusedError(error.status_code, "", error.detail))
            return _envelope(0, "SUCCEED", data)

        return answer

    def _log_in(self, request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            words = "there is no log-in; send `Authorization: Bearer` and a JSON Web Token"
            raise _unauthorized("authorization_missing", words)
        self._read(token.strip(), issuer=self._keys.access)

    def _read(
        self, token: str, *, issuer: str | None = None, audience: str | None = None, subject: str | None = None
    ) -> None:
        """Checks the signature in constant time, and what the token says of whom or what it is for."""
        needed: jwt.types.Options = {"require": ["exp", "sub" if issuer is None else "iss"]}
        try:
            jwt.decode(
                token,
                self._keys.secret,
                algorithms=["HS256"],
                options=needed,
                issuer=issuer,
                audience=audience,
                subject=subject,
                leeway=SKEW_S,
            )
        except jwt.ExpiredSignatureError:
            raise _unauthorized("authorization_expired", "the token has expired; sign a new one") from None
        except jwt.ImmatureSignatureError:
            words = "the token is not valid yet; set the clocks, or sign it with an earlier nbf"
            raise _unauthorized("authorization_too_early", words) from None
        except jwt.InvalidTokenError:
            words = "the token is not one of this server's; sign it with its secret key by HS256, with exp and iss"
            raise _unauthorized("authorization_invalid", words) from None

    def _task(self, job: Job, request: Request) -> dict[str, Any]:
        task: dict[str, Any] = {
            "task_id": job.id,
            "task_status": _STATUS[job.state],
            "task_info": {},
            "created_at": round(job.created_at * 1000),
            "updated_at": round((job.finished_at or job.started_at or job.created_at) * 1000),
        }
        if (job.idempotency_key or "").startswith(EXTERNAL):
            task["task_info"]["external_task_id"] = str(job.idempotency_key).removeprefix(EXTERNAL)
        if job.error is not None:
            task["task_status_msg"] = job.error["message"]
        if job.state == COMPLETED:
            video = {"id": job.id, "url": str(self._link(job.id, request)), "duration": seconds_of(job)}
            task["task_result"] = {"videos": [video]}
        return task

    def _link(self, id: str, request: Request) -> URL:
        """Clients fetch it without a log-in, so it holds one for this video alone, for a day."""
        claims = {"sub": id, "aud": "video", "exp": int(time.time()) + DAY_S}
        token = jwt.encode(claims, self._keys.secret, algorithm="HS256")
        return request.url_for("kling_video", id=id).include_query_params(token=token)


def _in_our_words(given: Mapping[str, Any], manifest: Manifest, *, with_pictures: bool) -> dict[str, Any]:
    """The request as OpenAI's API and `VideoRequest` name it; their own names are taken too."""
    values = {name: value for name, value in given.items() if value not in (None, "", [], {})}
    pictures = _given_pictures(values, with_pictures)
    harmless = _HARMLESS_WITH_TAIL if "last_image" in pictures else _HARMLESS
    for name, why in _REFUSED.items():
        if values.pop(name, None) not in (None, *harmless.get(name, ())):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "unsupported_value", f"{name}: {why}", name)
    values.pop("external_task_id", None)
    for theirs, ours in (("model_name", "model"), ("duration", "seconds"), ("cfg_scale", "guidance_scale")):
        if theirs in values and ours in values:
            raise invalid_value(theirs, f"{theirs} and {ours} say the same; give one of them")
        if theirs in values:
            values[ours] = values.pop(theirs)
    if given.get("cfg_scale") is not None:
        values["guidance_scale"] = _guidance(given["cfg_scale"], manifest)
    if "aspect_ratio" in values:
        if {"size", "height", "width"} & set(values):
            raise invalid_value("aspect_ratio", "aspect_ratio is given beside a size; give one of them")
        values["height"], values["width"] = _shape(values.pop("aspect_ratio"), manifest)
    return values | pictures


def _given_pictures(values: dict[str, Any], with_pictures: bool) -> dict[str, bytes]:
    """Takes the pictures out of a request: files in base64, by our names."""
    found = {}
    if not with_pictures and (own := [name for name in (*FILES, "input_reference") if name in values]):
        words = f"{own[0]}: a video with a picture is asked for at {IMAGE}, and one with a clip at {OURS}"
        raise invalid_value(own[0], words)
    for theirs, ours in _PICTURES.items():
        text = values.pop(theirs, None)
        if text is None:
            continue
        if not with_pictures:
            raise invalid_value(theirs, f"{theirs}: a video with a picture is asked for at {IMAGE}")
        if theirs != ours and ours in values:
            raise invalid_value(theirs, f"{theirs} and {ours} say the same; give one of them")
        if not isinstance(text, str) or re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", text):
            message = f"{theirs} must be a picture file in base64; this server never opens an address: send the file"
            raise invalid_value(theirs, message)
        found[ours] = from_base64(theirs, re.sub(r"^data:[^,]{0,200};base64,", "", text))
    if with_pictures and not found:
        raise invalid_value("image", f"image is missing; send a picture file in base64, or ask at {TEXT}")
    return found


def _guidance(scale: Any, manifest: Manifest) -> float | None:
    """Kling's scale from 0 to 1 as a guidance scale: 0 is none, and the middle is the model's own."""
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale <= 1:
        raise invalid_value("cfg_scale", f"cfg_scale must be a number from 0 to 1; got {str(scale)[:80]!r}")
    return None if scale == 0.5 else 1 + 2 * scale * (manifest.defaults.guidance_scale - 1)


def _shape(text: Any, manifest: Manifest) -> tuple[int, int]:
    """Height and width in pixels: about as many pixels as the model's own size has, in another shape."""
    found = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", text) if isinstance(text, str) else None
    if found is None:
        raise invalid_value("aspect_ratio", f"aspect_ratio must be width:height, such as 16:9; got {str(text)[:80]!r}")
    ratio = int(found[1]) / int(found[2])
    height, width = manifest.defaults.height, manifest.defaults.width
    for own in ((height, width), (width, height)):
        if abs(own[1] / own[0] / ratio - 1) < _LIKE_THE_MODEL:
            return own
    ideal = (math.sqrt(height * width / ratio), math.sqrt(height * width * ratio))
    heights, widths = manifest.geometry.sizes(0), manifest.geometry.sizes(1)
    return min(heights, key=lambda size: abs(size - ideal[0])), min(widths, key=lambda size: abs(size - ideal[1]))


def _text(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and (not isinstance(value, str) or len(value) > 200):
        raise invalid_value(name, f"{name} must be text of at most 200 characters")
    return value or None


def _whole(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    if not re.fullmatch(r"[1-9]\d{0,3}", text, re.ASCII) or int(text) > most:
        raise invalid_value(name, f"{name} must be a whole number from 1 to {most}; got {text[:80]!r}")
    return int(text)


async def _not_made(request: Request) -> Any:
    path = request.url.path
    known = path.startswith((TEXT, IMAGE))
    words = f"this address does not accept {request.method}" if known else f"there is no {path} here"
    message = f"{words}; this server makes videos from text at {TEXT}, and from pictures at {IMAGE}"
    raise RefusedError(HTTPStatus.NOT_FOUND, "unknown_address", message)


def _unauthorized(code: str, message: str) -> RefusedError:
    return RefusedError(HTTPStatus.UNAUTHORIZED, code, message, headers={"www-authenticate": "Bearer"})


def _refused(refusal: RefusedError) -> Response:
    status, message = refusal.status, refusal.message
    if refusal.param == "seconds":
        message = message.replace("seconds", "duration", 1)
    other = 1200 if status < HTTPStatus.INTERNAL_SERVER_ERROR else 5000
    return _envelope(
        _CODES.get(refusal.code) or _CODES_BY_STATUS.get(status, other), message, None, status, refusal.headers
    )


def _envelope(
    code: int, message: str, data: Any, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Response:
    body = {"code": code, "message": message, "request_id": str(uuid.uuid4())}
    return JSONResponse(body if data is None else body | {"data": data}, status, headers=headers)
