"""The files that clients may fetch of a video: the video, small pictures of it, and the files that it follows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from ..errors import RequestError
from ..pictures import Picture, Pixels
from ..request import FILES
from .given_files import is_clip, kind_of_clip, named, said_in
from .jobs import COMPLETED, Job
from .pictures import shrunk, write_small, write_spritesheet, write_thumbnail
from .refusals import NO_RETRY, RefusedError, invalid_value
from .studio import Studio
from .worker import FILE_NAME

_THUMBNAIL = "_thumbnail"
_MADE = {
    "video": (FILE_NAME, "video/mp4"),
    "thumbnail": ("thumbnail.webp", "image/webp"),
    "spritesheet": ("spritesheet.jpg", "image/jpeg"),
}
VARIANTS = (*_MADE, *dict(named(dict.fromkeys(FILES, (1, 2)))))  # and as many references as there are


@dataclass(frozen=True)
class Content:
    """A file, and what clients are told of it."""

    path: Path
    media_type: str
    name: str  # under which to save it
    etag: str  # the same for the same bytes


def content_of(job: Job, variant: str, studio: Studio) -> Content:
    """One file of a video; small pictures are made when somebody asks first.

    Raises:
        RefusedError: there is no such variant, the video is not finished, or follows no such picture, or what it
            follows is not there as it was sent.
        OSError: it was deleted meanwhile.
    """
    if variant not in _MADE and re.sub(r"\d+$", "1", variant.removesuffix(_THUMBNAIL)) not in VARIANTS:
        message = (
            f"variant must be one of {', '.join(VARIANTS)} and so on, those from image on also with {_THUMBNAIL}; got "
            f"{variant[:40]!r}"
        )
        raise invalid_value("variant", message)
    return _made(job, variant, studio) if variant in _MADE else _given(job, variant, studio)


def decodes(variant: str) -> bool:
    """Whether a whole picture of a client may be in memory for it."""
    return variant.endswith(_THUMBNAIL)


def _made(job: Job, variant: str, studio: Studio) -> Content:
    if job.state != COMPLETED:
        message = f"this video has no content; its state is {job.state}"
        raise RefusedError(HTTPStatus.CONFLICT, "video_not_ready", message, "video_id", NO_RETRY)
    name, media_type = _MADE[variant]
    video = studio.place(job.id) / FILE_NAME
    path = video.with_name(name)
    video.stat()  # raises where it is not there, before the answer begins
    if variant != "video" and not path.exists():
        write = write_thumbnail if variant == "thumbnail" else write_spritesheet
        write(video, job.num_frames, path)
    etag = f"{(job.receipt or {}).get('content_sha256', '')}-{variant}"
    return Content(path, media_type, f"{job.id}{path.suffix}", etag)


def _given(job: Job, variant: str, studio: Studio) -> Content:
    name = variant.removesuffix(_THUMBNAIL)
    identity = said_in(job.request).get(name)
    if identity is None:
        message = f"this video follows no {name}"
        raise RefusedError(HTTPStatus.NOT_FOUND, "not_found", message, "variant")
    path = studio.given.place(job.id, identity)
    if variant == name:
        with path.open("rb") as file:
            ending, kind = kind_of_clip(file.read(64)) if is_clip(identity) else (".png", "image/png")
        return Content(path, kind, f"{name}{ending}", path.stem)
    small = studio.given.place(job.id, identity, ".webp")
    if not small.exists():
        write_small(shrunk(_first(studio, job, name, identity)), small)
    return Content(small, "image/webp", f"{variant}.webp", f"{path.stem}-small")


def _first(studio: Studio, job: Job, name: str, identity: str) -> Pixels:
    """A picture that a client sent, or the first frame of a clip."""
    try:
        found = studio.given.read(job.id, name, identity)
        return found.pixels if isinstance(found, Picture) else next(found.frames())
    except RequestError as error:
        raise RefusedError(HTTPStatus.NOT_FOUND, "not_found", str(error), "variant") from error
