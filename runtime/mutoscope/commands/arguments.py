"""Arguments from the fields of a dataclass, and a parser that refuses with the nearest that exists."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from mutoscope_engines.names import no_such

from ..codec import as_text, from_text
from ..errors import RequestError
from ..terminal import tell
from ..values.parameters import Form


class Parser(argparse.ArgumentParser):
    """Takes no abbreviated flag, loses no value of a flag that is given twice, and raises `RequestError` where
    `argparse` would exit.
    """

    def __init__(self, command: str, description: str, **options: Any) -> None:
        super().__init__(prog=f"mutoscope {command}", description=description, allow_abbrev=False, **options)
        self.register("action", None, _Store)  # what `add_argument` takes where it is told no action
        self.register("type", int, _whole_number)
        self.given: dict[str, Any] = {}  # value by destination, of the flags met so far

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Reads the flags.

        Raises:
            RequestError: a flag is unknown, or its value is not possible.
        """
        self.given.clear()
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            self.error(self._about_unknown(unknown[0]))
        return namespace

    def print_help(self, file: Any = None) -> None:
        tell(self.format_help().rstrip())

    def error(self, message: str) -> NoReturn:
        if "expected one argument" in message:
            message += "; a value that begins with a dash is written --flag=VALUE"
        raise RequestError(f"{message}. See {self.prog} --help")

    def _about_unknown(self, argument: str) -> str:
        flags = [name for action in self._actions for name in action.option_strings]
        flag = argument.partition("=")[0]
        if not argument.startswith("-") or flag in flags:  # a flag after -- is text
            return f"unexpected {argument!r}; a text of several words needs quotes"
        return no_such("flag", flag, flags) + ". Text that begins with a dash comes after --"


class _Store(argparse.Action):
    """Adds up the values of a flag that takes several, and refuses another flag that is given twice.

    The action of `argparse` keeps the last value in silence.
    """

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        if flag is not None and isinstance(parser, Parser):
            if self.dest in parser.given:
                before = parser.given[self.dest]
                if self.nargs != "+":
                    parser.error(f"{flag} is given twice, as {before!s:.80} and as {values!s:.80}; give it once")
                values = [*before, *values]
            parser.given[self.dest] = values
        setattr(namespace, self.dest, values)


def add_bundle(parser: Parser, *flags: str) -> None:
    """The argument that names a bundle; without it, the built-in one."""
    keywords: dict[str, Any] = {} if flags else {"nargs": "?"}
    parser.add_argument(
        *(flags or ("bundle",)),
        metavar="BUNDLE",
        type=Path,
        help="folder of the bundle (default: the built-in demonstration bundle)",
        **keywords,
    )


def add_policy(parser: Parser) -> None:
    """The argument that names a product's own rules."""
    parser.add_argument(
        "--policy",
        metavar="NAME",
        help="a function that is asked before a video is made, and may refuse it, such as rules.policy",
    )


def add_fields(parser: Parser, kind: type[Any], *, skip: Sequence[str] = ()) -> None:
    """One flag for each field of a dataclass, with its type, help, choices and unit, under the kind's title.

    A field that is a tuple of names, without a form of its own, takes one or more values after its flag, and so does
    one whose form says so.
    A flag that is not given leaves nothing behind, so that the default stays written in the dataclass alone.
    """
    hints = get_type_hints(kind)
    group = parser.add_argument_group(kind.TITLE)
    for field in fields(kind):
        if field.name in skip:
            continue
        if field.default is False:
            group.add_argument(
                _flag(field), action="store_true", default=argparse.SUPPRESS, help=field.metadata["help"]
            )
        else:
            default = "" if field.default in (None, MISSING, ()) else f" (default: {as_text(field, field.default)})"
            form: Form | None = field.metadata["form"]
            several = form.several if form else hints[field.name] == tuple[str, ...]
            group.add_argument(
                _flag(field),
                dest=field.name,
                nargs="+" if several else None,
                type=_converter(field, str if several and form is None else hints[field.name]),
                metavar=_metavar(field),
                default=argparse.SUPPRESS,
                help=(field.metadata["help"] + default).replace("%", "%%"),
            )


def given(namespace: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """The fields of a dataclass that were given on the command line."""
    found = {field.name: getattr(namespace, field.name) for field in fields(kind) if hasattr(namespace, field.name)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def as_type(form: Form) -> Callable[[str], Any]:
    """For `add_argument`, where a flag is no field of a dataclass."""

    def convert(text: str) -> Any:
        try:
            return form.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def one_of(what: str, known: Sequence[str]) -> Callable[[str], str]:
    """For `add_argument`, where a flag that is no field of a dataclass takes one of the known names."""

    def convert(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(no_such(what, text, known))
        return text

    return convert


def flag_of(parameter: str) -> str:
    """The flag of a parameter, such as `--num-frames` of `num_frames`."""
    return "--" + parameter.replace("_", "-")


def _flag(field: Field[Any]) -> str:
    return flag_of(field.metadata.get("singular") or field.name)


def in_flags(message: str, parameters: Iterable[Field[Any]]) -> str:
    """A message that speaks of parameters, in terms of the command line.

    `memory_limit=8_000_000_000` becomes `--memory-limit 8GB`. A name without a value becomes its flag where it can be
    nothing else: where it has an underscore and is no part of a path, or where the message begins with it and goes on
    with "must", "has" or "is".
    """
    for field in parameters:
        name, flag = field.name, _flag(field)

        def assigned(found: re.Match[str], field: Field[Any] = field, flag: str = flag) -> str:
            try:
                value = ast.literal_eval(found[1])
                return flag if value is True and field.default is False else f"{flag} {as_text(field, value)}"
            except (ValueError, SyntaxError, TypeError):  # part of a path, or no value of this parameter
                return found[0]

        message = re.sub(rf"\b{name}=(\([^)]*\)|[\w.]+|'[^']*')", assigned, message)
        message = re.sub(rf"^{name}(?= (must|has|is) )", flag, message)
        if "_" in name:
            message = re.sub(rf"(?<![\w./\\'-]){name}\b(?![/\\']|\.\w)", flag, message)
    return message


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number; got {text!r}") from None


def _metavar(field: Field[Any]) -> str:
    choices = field.metadata.get("choices")
    return field.metadata.get("unit") or ("{" + ",".join(choices) + "}" if choices else field.name.upper())


def _converter(field: Field[Any], hint: Any) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return from_text(field, hint, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert
