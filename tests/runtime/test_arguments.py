"""Flags that are given twice, in every command. The rest of the parser is tested through the commands."""

import argparse

import pytest
from mutoscope.commands import bench, build, generate
from mutoscope.commands.arguments import Parser
from mutoscope.errors import RequestError
from mutoscope_export import cli as export

PARSERS = {"generate": generate._parser, "bench": bench._parser, "build": build._parser, "export": export._parser}
POSITIONAL = {"generate": ["a prompt"], "bench": [], "build": [], "export": ["checkpoint", "bundle"]}


def flags(parser: Parser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings and action.nargs != 0]


def taken(command: str, action: argparse.Action) -> str:
    """A value that the flag takes."""
    if action.metavar is not None and "{" in action.metavar:
        return str(action.metavar).strip("{}").split(",")[0]
    return "8x8x9" if action.dest == "calibration_size" else "3"


@pytest.mark.parametrize("command", PARSERS)
def test_no_value_of_a_flag_that_is_given_twice_is_lost(command: str) -> None:
    assert flags(PARSERS[command]())
    for action in flags(PARSERS[command]()):
        flag = action.option_strings[-1]
        argv = [*POSITIONAL[command], f"{flag}={taken(command, action)}"]
        once = getattr(PARSERS[command]().parse(argv), action.dest)
        if action.nargs == "+":
            twice = PARSERS[command]().parse([*argv, argv[-1]])
            assert getattr(twice, action.dest) == [*once, *once]
        else:
            with pytest.raises(RequestError, match=f"{flag} is given twice, as .* and as .*; give it once"):
                PARSERS[command]().parse([*argv, argv[-1]])


def test_precisions_of_an_export_are_added_up() -> None:
    parser = export._parser()
    assert parser.parse(["c", "b", "--precision", "bf16", "--precision", "fp8", "int8"]).precision == [
        "bf16", "fp8", "int8",
    ]  # fmt: skip
    assert parser.parse(["c", "b"]).precision == ["fp32"]  # the same parser, another command line


def test_the_short_name_of_a_flag_counts_as_the_flag() -> None:
    with pytest.raises(RequestError, match=r"--output is given twice, as a\.mp4 and as b\.mp4; give it once"):
        generate._parser().parse(["a prompt", "-o", "a.mp4", "--output", "b.mp4"])
