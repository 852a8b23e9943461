"""Flags that are given twice, in every command. The rest of the parser is tested through the commands."""

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import pytest
from mutoscope.cli import COMMANDS
from mutoscope.commands import generate
from mutoscope.commands.arguments import Parser
from mutoscope.errors import RequestError
from mutoscope_export import cli as export

POSITIONAL = {"generate": ["a prompt"], "export": ["checkpoint", "bundle"]}


def parser_of(command: str) -> Parser:
    """The parser that a command makes when it runs."""
    made: list[Parser] = []

    def stop(parser: Parser, argv: Sequence[str]) -> NoReturn:
        made.append(parser)
        raise SystemExit

    module, _, function = COMMANDS[command][0].partition(":")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Parser, "parse", stop)
        getattr(import_module(module), function)([])
    return made[0]


def flags(parser: Parser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings and action.nargs != 0]


def taken(action: argparse.Action) -> str:
    """A value that the flag takes."""
    if action.metavar is not None and "{" in action.metavar:
        return str(action.metavar).strip("{}").split(",")[0]
    return "8x8x9" if action.dest == "calibration_size" else "3"


@pytest.mark.parametrize("command", COMMANDS)
def test_no_value_of_a_flag_that_is_given_twice_is_lost(command: str) -> None:
    parser = parser_of(command)
    for action in flags(parser):
        flag = action.option_strings[-1]
        argv = [*POSITIONAL.get(command, []), f"{flag}={taken(action)}"]
        once = getattr(parser.parse(argv), action.dest)
        if action.nargs == "+":
            assert getattr(parser.parse([*argv, argv[-1]]), action.dest) == [*once, *once]
        else:
            with pytest.raises(RequestError, match=f"{flag} is given twice, as .* and as .*; give it once"):
                parser.parse([*argv, argv[-1]])


def test_the_commands_have_the_flags_that_are_tried() -> None:
    assert {command for command in COMMANDS if not flags(parser_of(command))} == {"inspect", "verify", "doctor"}


def test_precisions_of_an_export_are_added_up() -> None:
    parser = export._parser()
    assert parser.parse(["c", "b", "--precision", "bf16", "--precision", "fp8", "int8"]).precision == [
        "bf16", "fp8", "int8",
    ]  # fmt: skip
    assert parser.parse(["c", "b"]).precision == ["fp32"]  # the same parser, another command line


def test_the_short_name_of_a_flag_counts_as_the_flag() -> None:
    with pytest.raises(RequestError, match=r"--output is given twice, as a\.mp4 and as b\.mp4; give it once"):
        generate._parser().parse(["a prompt", "-o", "a.mp4", "--output", "b.mp4"])
