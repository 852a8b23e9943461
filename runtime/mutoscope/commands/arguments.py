"""Arguments from the fields of a dataclass, and a parser that refuses with the nearest that exists."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from ..errors import RequestError
from ..terminal import tell


class Parser(argparse.ArgumentParser):
    """Takes no abbreviated flag, loses no value of a flag that is given twice, and raises `RequestError` where
    `argparse` would exit.
    """

    def __init__(self, command: str, description: str, **options: Any) -> None:
        super().__init__(prog=f"mutoscope {command}", description=description, allow_abbrev=False, **options)
        self.register("action", None, _Store)  # what `add_argument` takes where it is told no action
        self.given: dict[str, Any] = {}  # value by destination, of the flags met so far

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
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
                    parser.error(f"{flag} is given twice, as {before!s} and as {values!s}; give it once")
                values = [*before, *values]
            parser.given[self.dest] = values
        setattr(namespace, self.dest, values)


def no_such(what: str, name: str, known: Sequence[str]) -> str:
    """Says that a name is unknown, which is the nearest, and which there are."""
    nearest = difflib.get_close_matches(name, known, 1)
    meant = f"; did you mean {nearest[0]}?" if nearest else "."
    return f"there is no {what} {name!r}{meant} There are: {', '.join(known)}"


def add_bundle(parser: Parser, *flags: str) -> None:
    """The argument that names a bundle; without it, the built-in one."""
    keywords: dict[str, Any] = {} if flags else {"nargs": "?"}
    parser.add_argument(
        *(flags or ("bundle",)),
        metavar="BUNDLE",
        type=Path,
        help="folder of a bundle (default: the built-in one)",
        **keywords,
    )


def add_fields(parser: Parser, kind: type[Any], *, skip: Sequence[str] = ()) -> None:
    """One flag for each field of a dataclass, with its type, help, choices and unit.

    A flag that is not given leaves nothing behind, so that the default stays written in the dataclass alone.
    """
    hints = get_type_hints(kind)
    group = parser.add_argument_group((kind.__doc__ or "").partition(".")[0].lower())
    for field in fields(kind):
        if field.name in skip:
            continue
        if hints[field.name] is bool:
            flag = "--" + field.name.replace("_", "-")
            group.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=field.metadata["help"])
        else:
            default = "" if field.default in (None, MISSING) else f" (default: {field.default})"
            group.add_argument(
                "--" + field.name.replace("_", "-"),
                dest=field.name,
                type=_converter(field, hints[field.name]),
                metavar=_metavar(field),
                default=argparse.SUPPRESS,
                help=(field.metadata["help"] + default).replace("%", "%%"),
            )


def given(namespace: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """The fields of a dataclass that were given on the command line."""
    return {field.name: getattr(namespace, field.name) for field in fields(kind) if hasattr(namespace, field.name)}


def _metavar(field: Field[Any]) -> str:
    choices = field.metadata.get("choices")
    return "{" + ",".join(choices) + "}" if choices else field.metadata.get("unit") or field.name.upper()


def _converter(field: Field[Any], hint: Any) -> Callable[[str], Any]:
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    what = {int: "a whole number", float: "a number"}.get(kinds[0], "text")
    choices, joined_by = field.metadata.get("choices", ()), field.metadata.get("joined_by")

    def convert(text: str) -> Any:
        for name in text.split(joined_by) if joined_by else [text]:
            if choices and name not in choices:
                raise argparse.ArgumentTypeError(no_such(field.name, name, choices))
        try:
            return kinds[0](text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {what}; got {text!r}") from None

    return convert
