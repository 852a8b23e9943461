"""What clients send, as a request. Form fields are text and are read by their types; JSON has types of its own.

Knows the names of OpenAI's API beside those of `VideoRequest`. Knows no HTTP.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from http import HTTPStatus
from typing import Any, get_type_hints

from mutoscope_engines.names import no_such

from ..bundle.manifest import Manifest
from ..codec import decode, from_text, to_plain
from ..errors import RequestError
from ..request import LORAS, OF_CLIPS, PICTURES, VideoRequest
from ..values.frame_rates import parse_frame_rate
from .refusals import RefusedError, invalid_value

FIELDS = {each.name: each for each in fields(VideoRequest) if each.name not in (*PICTURES, *OF_CLIPS)}
OPENAI_FIELDS = ("model", "size", "seconds")
MOST_CHARACTERS = 32_000  # of one value

_HINTS = get_type_hints(VideoRequest)
_PICTURES = {"input_reference": "image", **{name: name for name in PICTURES}}  # what clients call them, and we


@dataclass(frozen=True)
class Asked:
    """What a client asked for: values of `VideoRequest` by name, and what OpenAI's API says in other words.

    Attributes:
        pictures: whole files, by the fields of `VideoRequest`.
        called: what the client calls a field, where that is not our name.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    called: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    size: tuple[int, int] | None = None  # width, height
    seconds: Fraction | None = None

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
        if self.seconds is not None:
            if "num_frames" in values:
                raise RequestError("seconds and num_frames are both given; give one of them")
            values["num_frames"] = self._frames(values, manifest)
        pictures: dict[str, Any] = dict(self.pictures)
        return replace(decode(VideoRequest, values), **pictures)

    def _frames(self, values: Mapping[str, Any], manifest: Manifest) -> int:
        assert self.seconds is not None
        fps = parse_frame_rate(values.get("fps") or manifest.defaults.fps)
        wanted = self.seconds * (fps or 0)
        counts = manifest.frames.counts
        if not wanted <= counts[-1] + counts.step:
            longest = float(counts[-1] / fps) if fps else 0
            raise RequestError(f"seconds must be at most {longest:g} for this model; got {float(self.seconds):g}")
        return min(counts, key=lambda count: abs(count - wanted))


def from_form(pairs: Sequence[tuple[str, str]], files: Sequence[tuple[str, bytes]] = ()) -> Asked:
    """Reads fields of a form, as the `openai` package writes them: lists as repeated `name[]`.

    Args:
        pairs: names and texts.
        files: names and contents of fields that hold a file.

    Raises:
        RefusedError: an unknown name, or a text that is none of its values.
    """
    values: dict[str, Any] = {}
    for name, text in [*pairs, *files]:
        bare = name.removesuffix("[]")
        if bare in values and bare != name and isinstance(text, str):
            text = f"{values[bare]},{text}"
        elif bare in values:
            raise invalid_value(bare, f"{bare} is given twice; give it once")
        values[bare] = text
    _refuse_unknown(list(values))
    for name, text in values.items():
        if isinstance(text, bytes) and name not in _PICTURES:
            raise invalid_value(name, f"{name} is no picture; send it as text and not as a file")
        if name in LORAS:
            raise invalid_value(name, f"{name} must be a list of objects, which only JSON has; send JSON")
        if name in FIELDS:
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


def _asked(values: Mapping[str, Any]) -> Asked:
    for name, value in values.items():
        is_picture = name.partition("[")[0] in _PICTURES
        if not is_picture and isinstance(value, str) and len(value) > MOST_CHARACTERS:
            message = f"{name} may have at most {MOST_CHARACTERS} characters; it has {len(value)}"
            raise RefusedError(HTTPStatus.BAD_REQUEST, "string_above_max_length", message, name)
    model = values.get("model")
    pictures, called = _pictures(values)
    if model is not None and not isinstance(model, str):
        raise invalid_value("model", f"model must be text; got {model!r}")
    own = {name: value for name, value in values.items() if name in FIELDS or name.partition("[")[0] in FIELDS}
    return Asked(own, pictures, called, model, _size(values.get("size")), _seconds(values.get("seconds")))


def _pictures(values: Mapping[str, Any]) -> tuple[dict[str, bytes], dict[str, str]]:
    """The pictures by our names, and what the client calls those that have another one there."""
    given: dict[str, Any] = {}
    for name, value in values.items():
        bare, bracket, key = name.partition("[")  # as a form says an object
        if bare in _PICTURES:
            given[bare] = {key.removesuffix("]"): value} if bracket else value
    called = {_PICTURES[name]: name for name in given}
    if len(called) < len(given):
        raise invalid_value("input_reference", "input_reference and image are the same; give one of them")
    return {_PICTURES[name]: _content(name, value) for name, value in given.items()}, called


def _content(name: str, value: Any) -> bytes:
    """The file that a picture is."""
    if isinstance(value, bytes):
        return value
    url = value.get("image_url") if isinstance(value, dict) else value  # the former is how OpenAI's API has it
    head, comma, text = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not comma or not re.fullmatch(r"data:[^,]{0,200};base64", head):
        message = (
            f"{name} must be the picture itself: a file of a form, or in JSON a data URL, data:image/png;base64,... "
            "Paths, other URLs and ids of files are never opened"
        )
        raise RefusedError(HTTPStatus.BAD_REQUEST, "unsupported_value", message, name)
    return from_base64(name, text)


def from_base64(name: str, text: str) -> bytes:
    """The file that a text stands for.

    Raises:
        RefusedError: it is no base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise invalid_value(name, f"{name} must be a picture file in base64; this is none") from None


def _refuse_unknown(names: Sequence[str]) -> None:
    for name in names:
        bare = name.partition("[")[0]
        if bare not in FIELDS and bare not in OPENAI_FIELDS and bare not in _PICTURES:
            message = no_such("parameter", name[:80], [*FIELDS, *_PICTURES, *OPENAI_FIELDS])
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
