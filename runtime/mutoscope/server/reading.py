"""What clients send, as a request. Form fields are text and are read by their types; JSON has types of its own.

Knows the names of OpenAI's API beside those of `VideoRequest`. Knows no HTTP, and no videos that there are.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from http import HTTPStatus
from typing import Any, get_type_hints

from mutoscope_engines.names import no_such

from ..bundle.manifest import Manifest
from ..clips import Clip
from ..codec import decode, from_text, to_plain
from ..errors import RequestError
from ..request import CLIPS, FILES, LORAS, REFERENCES, VideoRequest
from ..values.frame_rates import parse_frame_rate
from .describing import files_taken
from .given_files import sent_clip
from .refusals import RefusedError, invalid_value

FIELDS = {each.name: each for each in fields(VideoRequest) if each.name not in FILES}
OPENAI_FIELDS = ("model", "size", "seconds")
MOST_CHARACTERS = 32_000  # of one value
MOST_FILES = 20  # of a form, or in a list
MOST_LORAS = 100  # of one denoiser

_HINTS = get_type_hints(VideoRequest)
_FILES = {"input_reference": "image", **{name: name for name in FILES}}  # what clients call them, and we
_SEVERAL = (REFERENCES, *LORAS)  # of which each is a field of its own in a form
_A_FORM = "a file of a form, or in JSON a data URL"
_WANTED = {  # what each file is, and how to send it
    **dict.fromkeys(_FILES, ("the picture itself", f"{_A_FORM}, data:image/png;base64,...")),
    **dict.fromkeys(
        CLIPS,
        (
            "the video itself",
            f'{_A_FORM}, data:video/mp4;base64,..., or {{"id": "video_..."}} for a finished video of this server',
        ),
    ),
    "mask": ("the video or picture itself", f"{_A_FORM}, data:video/mp4;base64,... or data:image/png;base64,..."),
}


@dataclass(frozen=True)
class OwnVideo:
    """A video of this server, in the place of a file."""

    id: str


@dataclass(frozen=True)
class Asked:
    """What a client asked for: values of `VideoRequest` by name, and what OpenAI's API says in other words.

    Attributes:
        files: whole files by the fields of `VideoRequest`, several of a tuple.
        called: what the client calls a field, where that is not our name.
        needs: a file that the model has to take, where none is named.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes | OwnVideo | tuple[bytes, ...]] = field(default_factory=dict)
    called: Mapping[str, str] = field(default_factory=dict)
    needs: str | None = None
    model: str | None = None
    size: tuple[int, int] | None = None  # width, height
    seconds: Fraction | None = None

    @property
    def fingerprint(self) -> str:
        """The same for what is asked for in the same words, with the same files or ids of videos."""
        said = [self.needs, self.model, self.size, self.seconds, self.values, self.files]
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=_in_short).encode()).hexdigest()

    def request(self, manifest: Manifest) -> VideoRequest:
        """The request, for one bundle: `seconds` become the nearest number of frames that its model can make.

        Raises:
            RequestError: a value is missing or of another type, or two say the same thing.
        """
        values = dict(self.values)
        if self.size is not None:
            for name, pixels in zip(("width", "height"), self.size, strict=True):
                if values.setdefault(name, pixels) != pixels:
                    raise RequestError(f"{name} is {values[name]}, and size says {pixels}; give one of them")
        if self.seconds is not None and "num_frames" in values:
            raise RequestError("seconds and num_frames are both given; give one of them")
        files: dict[str, Any] = dict(self.files)
        for name in files_taken(manifest) & set(CLIPS) & set(files):
            files[name] = sent_clip(files[name], name)
        if self.seconds is not None:
            values["num_frames"] = self._frames(values, files, manifest)
        return replace(decode(VideoRequest, values), **files)

    def _frames(self, values: Mapping[str, Any], files: Mapping[str, Any], manifest: Manifest) -> int:
        """Of what is made: where it goes on from a clip, its first frame is there already."""
        assert self.seconds is not None
        clip = next((clip for clip in files.values() if isinstance(clip, Clip)), None)
        own = None if clip is None else parse_frame_rate(clip.head.rate)
        fps = parse_frame_rate(values.get("fps") or own or manifest.defaults.fps)
        before, counts = int("extend" in files), manifest.frames.counts
        counts = counts[before:] or counts
        wanted = self.seconds * (fps or 0) + before
        if not wanted <= counts[-1] + counts.step:
            longest = float((counts[-1] - before) / fps) if fps else 0
            raise RequestError(f"seconds must be at most {longest:g} for this model; got {float(self.seconds):g}")
        return min(counts, key=lambda count: abs(count - wanted))


def _in_short(value: Any) -> Any:
    """What JSON has no type for, as a fingerprint knows it."""
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return {"id": value.id} if isinstance(value, OwnVideo) else str(value)


def from_form(pairs: Sequence[tuple[str, str]], files: Sequence[tuple[str, bytes]] = ()) -> Asked:
    """Reads fields of a form, as the `openai` package writes them: `name[]` for a list, `name[key]` for an object.

    Args:
        pairs: names and texts.
        files: names and contents of fields that hold a file.

    Raises:
        RefusedError: an unknown name, or a text that is none of its values.
    """
    values: dict[str, Any] = {}
    for name, text in [*pairs, *files]:
        bare = name.removesuffix("[]")
        if bare in _SEVERAL:
            text = [*values.get(bare, ()), text]
        elif bare in values and bare != name and isinstance(text, str):
            text = f"{values[bare]},{text}"
        elif bare in values:
            raise invalid_value(bare, f"{bare} is given twice; give it once")
        values[bare] = text
    values = _with_objects(values)
    _refuse_unknown(list(values))
    for name, text in values.items():
        contents = text if isinstance(text, list) else [text]
        if name not in _FILES and any(isinstance(content, bytes) for content in contents):
            raise invalid_value(name, f"{name} is no file; send it as text")
        if name in LORAS:
            values[name] = [_named_lora(each) for each in text]
        elif name in FIELDS:
            try:
                values[name] = to_plain(from_text(FIELDS[name], _HINTS[name], text))
            except ValueError as error:
                raise invalid_value(name, f"{name} {error}") from None
    return _asked(values)


def from_json(values: Mapping[str, Any]) -> Asked:
    """Reads a JSON object; its values are typed by `VideoRequest.from_dict`. A null is as if it were left out.

    Raises:
        RefusedError: it has an unknown name, or a value that is none of OpenAI's.
    """
    given = {name: value for name, value in values.items() if value is not None}
    _refuse_unknown(list(given))
    return _asked(given)


def changing(asked: Asked) -> Asked:
    """What OpenAI's API calls an edit of a video.

    Raises:
        RefusedError: there is no video.
    """
    return replace(asked, files=_with_video(asked), needs="video")


def going_on(asked: Asked) -> Asked:
    """What OpenAI's API calls an extension of a video.

    Raises:
        RefusedError: there is no video, or two.
    """
    files = dict(_with_video(asked))
    if "extend" in files:
        raise invalid_value("extend", "extend and video are the same here; give one of them")
    files["extend"] = files.pop("video")
    return replace(asked, files=files, called={**asked.called, "extend": "video"}, needs="extend")


def _with_video(asked: Asked) -> Mapping[str, Any]:
    if "video" not in asked.files:
        raise invalid_value("video", f"video is missing; {_WANTED['video'][1]}")
    return asked.files


def _with_objects(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a form with an object in place of `video[id]`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        bare, bracket, key = name.partition("[")
        if bare not in _FILES:
            bare, bracket = name, ""
        if bare in found:
            raise invalid_value(bare, f"{bare} is given twice; give it once")
        found[bare] = {key.removesuffix("]"): value} if bracket else value
    return found


def _named_lora(text: str) -> dict[str, Any]:
    """As the command line has it, but no file is looked for; after it may stand the hash that the file must have."""
    text, hash_of, sha256 = text.partition(" sha256:")
    said: dict[str, Any] = {"sha256": sha256} if hash_of else {}
    name, colon, strength = text.rpartition(":")
    try:
        return said | ({"path": name, "strength": float(strength)} if colon else {"path": text})
    except ValueError:
        return said | {"path": text}


def _asked(values: Mapping[str, Any]) -> Asked:
    for name, value in values.items():
        if name not in _FILES:
            refuse_long(name, value)
        if name in LORAS and isinstance(value, list) and len(value) > MOST_LORAS:
            raise invalid_value(name, f"{name} may have at most {MOST_LORAS} files; it has {len(value)}. Give fewer")
    model = values.get("model")
    files, called = _files(values)
    if model is not None and not isinstance(model, str):
        raise invalid_value("model", f"model must be text; got {model!r}")
    own = {name: value for name, value in values.items() if name in FIELDS}
    size, seconds = _size(values.get("size")), _seconds(values.get("seconds"))
    return Asked(own, files, called, model=model, size=size, seconds=seconds)


def _files(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The files by our names, and what the client calls those that have another one there."""
    given = {name: value for name, value in values.items() if name in _FILES and value != []}
    called = {_FILES[name]: name for name in given}
    if len(called) < len(given):
        raise invalid_value("input_reference", "input_reference and image are the same; give one of them")
    return {_FILES[name]: _content_or_several(name, value) for name, value in given.items()}, called


def _content_or_several(name: str, value: Any) -> Any:
    if name != REFERENCES:
        return _content(name, value)
    if not isinstance(value, list):
        raise invalid_value(name, f"{name} must be a list of pictures, each {_WANTED[name][1]}")
    if len(value) > MOST_FILES:
        raise invalid_value(name, f"{name} may have at most {MOST_FILES} pictures; it has {len(value)}. Give fewer")
    return tuple(_content(name, each) for each in value)


def _content(name: str, value: Any) -> bytes | OwnVideo:
    """The file that a picture or clip is."""
    if isinstance(value, bytes):
        return value
    if name in CLIPS and isinstance(value, dict) and list(value) == ["id"] and isinstance(value["id"], str):
        return OwnVideo(value["id"])
    url = value.get("image_url") if isinstance(value, dict) else value  # the former is how OpenAI's API has it
    head, comma, text = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not comma or not re.fullmatch(r"data:[^,]{0,200};base64", head):
        what, how = _WANTED[name]
        message = f"{name} must be {what}: {how}. Paths, other URLs and ids of files are never opened"
        raise RefusedError(HTTPStatus.BAD_REQUEST, "unsupported_value", message, name)
    return from_base64(name, text)


def refuse_long(name: str, value: Any) -> None:
    """
    Raises:
        RefusedError: it is text with more than `MOST_CHARACTERS`.
    """
    if isinstance(value, str) and len(value) > MOST_CHARACTERS:
        message = f"{name} may have at most {MOST_CHARACTERS} characters; it has {len(value)}"
        raise RefusedError(HTTPStatus.BAD_REQUEST, "string_above_max_length", message, name)


def from_base64(name: str, text: str) -> bytes:
    """The file that a text stands for.

    Raises:
        RefusedError: it is no base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise invalid_value(name, f"{name} must be a file in base64; this is none") from None


def _refuse_unknown(names: Sequence[str]) -> None:
    for name in names:
        if name not in FIELDS and name not in OPENAI_FIELDS and name not in _FILES:
            message = no_such("parameter", name[:80], [*FIELDS, *_FILES, *OPENAI_FIELDS])
            raise RefusedError(HTTPStatus.BAD_REQUEST, "unknown_parameter", message, name[:80])


def _size(text: Any) -> tuple[int, int] | None:
    if text is None or text == "auto":
        return None
    found = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", text) if isinstance(text, str) else None
    if found is None:
        message = f"size must be width x height in pixels, such as 832x480; got {str(text)[:80]!r}"
        raise invalid_value("size", message)
    return int(found[1]), int(found[2])


def _seconds(value: Any) -> Fraction | None:
    """OpenAI's API has text here; a number is taken too."""
    if value is None:
        return None
    text = str(value)
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text) or not Fraction(text):
        message = f"seconds must be a number above 0, such as 4 or 2.5; got {text[:80]!r}"
        raise invalid_value("seconds", message)
    return Fraction(text)
