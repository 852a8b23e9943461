"""Requests, options and plans from what programs and people write, and back: JSON and command-line text.

Knows types, and the forms that parameters are declared with. Knows no parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from fractions import Fraction
from functools import reduce
from operator import or_
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
from mutoscope_engines.names import no_such

from .errors import RequestError
from .values.frame_rates import parse_frame_rate, plain_frame_rate
from .values.loras import LORA, Lora
from .values.parameters import OF_FILES, Form

Record = TypeVar("Record")

_IN_WORDS = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", Sequence[float]: "a list of numbers",
    tuple[int, int]: "a list of two whole numbers", tuple[str, ...]: "a list of names",
    Sequence[Lora]: 'a list of objects such as {"path": "style.safetensors", "strength": 0.8}',
}  # fmt: skip


class _PlainLora(msgspec.Struct, forbid_unknown_fields=True):
    """A `Lora` as JSON has it."""

    path: str
    strength: float = 1.0


def decode(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """A request or options from the object that JSON has for them.

    Raises:
        RequestError: a name that there is not, a value of another type, or one that is missing; names all at once.
    """
    if not isinstance(values, Mapping):
        raise RequestError(f"the parameters of a {kind.__name__} must be an object; got {type(values).__name__}")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    problems, given = _unknown(list(known), values), {}
    for name, value in values.items():
        if name in known:
            try:
                given[name] = _decoded(known[name], hints[name], value)
            except ValueError as error:
                problems.append(str(error))
    missing = [name for name, field in known.items() if field.default is MISSING and name not in values]
    problems += [f"{name} is missing" for name in missing]
    if problems:
        raise RequestError("; ".join(problems))
    return kind(**given)


def encode(parameters: Any) -> dict[str, Any]:
    """What a request or options say beyond their defaults, as JSON has it."""
    given = {field: getattr(parameters, field.name) for field in fields(parameters)}
    return {field.name: _encoded(field, value) for field, value in given.items() if value is not field.default}


def refuse_unknown(kind: type[Any], given: Mapping[str, Any]) -> None:
    """
    Raises:
        RequestError: the kind has no parameter of a name; says which is the nearest, and which there are.
    """
    if problems := _unknown([field.name for field in fields(kind)], given):
        raise RequestError("; ".join(problems))


def from_text(field: Field[Any], hint: Any, text: str) -> Any:
    """The value of a parameter from the command line.

    Raises:
        ValueError: the text is none of its values; says what would be.
    """
    form: Form | None = field.metadata.get("form")
    kinds = [kind for kind in _kinds(hint) if kind is not type(None)]
    if form is not None:
        value = form.read(text)
    elif str in kinds:
        value = text
    else:
        try:
            value = kinds[0](text)
        except ValueError:
            raise ValueError(f"must be {_IN_WORDS[kinds[0]]}; got {text!r}") from None
    refuse_other_choices(field, value)
    return value


def as_text(field: Field[Any], value: Any) -> str:
    """A value as the command line takes it: what `from_text` reads, several names with spaces between them."""
    form: Form | None = field.metadata.get("form")
    if form is None:
        return " ".join(value) if isinstance(value, tuple) else str(value)
    return " ".join(map(form.write, value)) if form.several else form.write(value)


def refuse_other_choices(field: Field[Any], value: Any) -> None:
    """
    Raises:
        ValueError: a name is none of the choices that the parameter has; says which is the nearest.
    """
    choices = field.metadata.get("choices", ())
    for name in [value] if isinstance(value, str) else value if isinstance(value, tuple) else []:
        if choices and name not in choices:
            raise ValueError(no_such(field.name, name, choices))


def to_plain(value: Any) -> Any:
    """A record, or anything in one, as JSON has it: dictionaries, lists, numbers and text."""
    return msgspec.to_builtins(value, enc_hook=_plain)


def from_plain(kind: type[Record], value: Any) -> Record:
    """The inverse of `to_plain`, strict about types.

    Raises:
        RequestError: the value is no such record; says what does not fit.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=_typed)
    except msgspec.ValidationError as error:
        raise RequestError(f"this is not a {kind.__name__}: {error}") from error


def _unknown(known: Sequence[str], given: Mapping[str, Any]) -> list[str]:
    return [no_such("parameter", name, known) for name in given if name not in known]


def _decoded(field: Field[Any], hint: Any, value: Any) -> Any:
    kinds = [kind for kind in _kinds(hint) if kind is type(None) or kind in _IN_WORDS]
    # A fraction and a path are text in JSON.
    form: Form | None = field.metadata.get("form")
    exact = form if Fraction in _kinds(hint) or form in OF_FILES else None
    try:
        texts = value if isinstance(value, list) and exact is not None and exact.several else [value]
        if exact is not None and all(isinstance(text, str) for text in texts):
            read = tuple(map(exact.read, texts))
            return read if exact.several else read[0]
        if form is LORA:
            return tuple(Lora(each.path, each.strength) for each in msgspec.convert(value, list[_PlainLora]))
        found = msgspec.convert(value, reduce(or_, kinds))
    except (ValueError, msgspec.ValidationError):
        said = exact.in_text if exact else " or ".join(_IN_WORDS[kind] for kind in kinds if kind is not type(None))
        raise ValueError(f"{field.name} must be {said}; got {value!r}") from None
    refuse_other_choices(field, found)
    return tuple(found) if isinstance(found, list) else found


def _encoded(field: Field[Any], value: Any) -> Any:
    form: Form | None = field.metadata.get("form")
    if form not in OF_FILES:
        return to_plain(value)
    if form.several:
        return [_path(field, form, each) for each in value]
    return _path(field, form, value)


def _path(field: Field[Any], form: Form, value: Any) -> str:
    try:
        return form.write(value)
    except TypeError:
        raise RequestError(
            f"{field.name} can be written as JSON only if it is a path; got {type(value).__name__}. Save it as a file"
        ) from None


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    return (hint,) if hint in _IN_WORDS else get_args(hint) or (hint,)


def _plain(value: Any) -> Any:
    if isinstance(value, Fraction):
        return plain_frame_rate(value)
    if hasattr(value, "tolist"):  # NumPy's
        return value.tolist()
    raise RequestError(f"{value!r} cannot be written as JSON; give plain numbers, text, or names")


def _typed(kind: type, value: Any) -> Any:
    """A frame rate is the only type of a record that JSON lacks."""
    if kind is Fraction and (rate := parse_frame_rate(value)) is not None:
        return rate
    raise ValueError(f"{value!r} is not a {kind.__name__}")
