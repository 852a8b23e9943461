"""A flag for every parameter, flags that are given twice, in every command, and messages in terms of flags.

The rest of the parser is tested through the commands.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from typing import NoReturn

import pytest
from mutoscope.building.build import BuildOptions
from mutoscope.cli import COMMANDS
from mutoscope.commands.arguments import Parser, add_fields, given, in_flags
from mutoscope.errors import RequestError
from mutoscope.request import OutputOptions, RuntimeOptions, VideoRequest
from mutoscope_export.options import ExportOptions

POSITIONAL = {
    "generate": ["a prompt"],
    "batch": ["jobs.jsonl", "videos"],
    "export": ["checkpoint", "bundle"],
    "provenance": ["keys"],
    "work": ["folder"],
}


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
    return [action for action in parser._actions if action.option_strings and action.nargs != 0]  # noqa: SLF001 argparse lists them nowhere else


def taken(action: argparse.Action) -> str:
    """A value that the flag takes."""
    if action.metavar is not None and "{" in action.metavar:
        return str(action.metavar).strip("{}").split(",")[0]
    samples = {"calibration_size": "8x8x9", "shapes": "8x8x9", "tile": "8x8", "precision": "fp32"}
    samples |= {"calibration_prompts": __file__, "engines_sha256": "0" * 64}
    samples |= dict.fromkeys(("memory_limit", "part_size", "max_body", "free_disk"), "3GB")
    return samples.get(action.dest, "on" if action.metavar == "on|off" else "3")


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
    assert {command for command in COMMANDS if not flags(parser_of(command))} == {"inspect", "doctor"}


def test_precisions_of_an_export_are_added_up() -> None:
    parser = parser_of("export")
    namespace = parser.parse(["c", "b", "--precision", "bf16", "--precision", "fp8", "int8"])
    assert given(namespace, ExportOptions) == {"precision": ("bf16", "fp8", "int8")}
    assert given(parser.parse(["c", "b"]), ExportOptions) == {}  # the same parser, another command line


def test_several_pictures_follow_one_flag_and_scales_are_joined_by_commas() -> None:
    parser = parser_of("generate")
    asked = ["a prompt", "--reference-images", "cat.png", "a,b.png", "--conditioning-scale", "1,0.5", "--mask", "m.png"]
    assert given(parser.parse(asked), VideoRequest) == {
        "prompt": "a prompt", "reference_images": ("cat.png", "a,b.png"), "conditioning_scale": (1.0, 0.5),
        "mask": "m.png",
    }  # fmt: skip
    assert given(parser.parse(["a", "--conditioning-scale", "0.5"]), VideoRequest)["conditioning_scale"] == 0.5
    with pytest.raises(RequestError, match="must be a number, or numbers with commas between them"):
        parser.parse(["a", "--conditioning-scale", "much"])
    with pytest.raises(RequestError, match="must be one or more paths of picture files"):
        parser.parse(["a", "--reference-images", ""])


def test_the_short_name_of_a_flag_counts_as_the_flag() -> None:
    with pytest.raises(RequestError, match=r"--output is given twice, as a\.mp4 and as b\.mp4; give it once"):
        parser_of("generate").parse(["a prompt", "-o", "a.mp4", "--output", "b.mp4"])


FIELDS = [field for kind in (VideoRequest, RuntimeOptions, BuildOptions) for field in fields(kind)]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "This would fit: memory_limit=8_130_000_000, or num_frames=17",
            "This would fit: --memory-limit 8.13GB, or --num-frames 17",
        ),
        ("tile=(24, 32) must be multiples of 8", "--tile 24x32 must be multiples of 8"),
        ("height must be a multiple of 16; got 33", "--height must be a multiple of 16; got 33"),
        ("ask for a smaller height, width or num_frames", "ask for a smaller height, width or --num-frames"),
        ("backend=('onnxruntime', 'openvino')", "--backend onnxruntime+openvino"),
        ("set cuda_graphs=False or exact_size=True", "set --cuda-graphs off or --exact-size"),
        ("fps must be a number", "--fps must be a number"),
        ("the prompt is empty", "the prompt is empty"),
        ("prompt has 90 tokens", "prompt has 90 tokens"),
        ("no file precision_height.txt at --threads", "no file precision_height.txt at --threads"),
        ("'num_frames.xyz' and /a/num_frames/b have no ending", "'num_frames.xyz' and /a/num_frames/b have no ending"),
        ("ask for fewer num_frames.", "ask for fewer --num-frames."),
        ("branches_per_call=1", "--branches-per-call 1"),
        ("tile=nonsense(", "tile=nonsense("),
        ("no file tile=5 at sigmas='x'", "no file tile=5 at sigmas='x'"),
        ("image is not there: 'image=5'", "--image is not there: 'image=5'"),
        ("give last_image='a.png'", "give --last-image a.png"),
    ],
)
def test_a_message_of_the_runtime_is_told_in_flags(message: str, told: str) -> None:
    assert in_flags(message, [field for field in FIELDS if field.name != "prompt"]) == told


def test_every_parameter_is_a_flag_with_its_help_and_type():
    parser = Parser("x", "")
    kinds = (VideoRequest, RuntimeOptions, OutputOptions)
    for kind in kinds:
        add_fields(parser, kind, skip=["prompt"])
    text = " ".join(parser.format_help().split())
    for kind in kinds:
        for field in fields(kind):
            if field.name != "prompt":
                name = {"loras": "lora", "loras_2": "lora_2"}.get(field.name, field.name)
                assert f"--{name.replace('_', '-')} " in text
                assert field.metadata["help"] in text
    namespace = parser.parse(["--seed", "3", "--guidance-scale", "4", "--codec", "av1"])
    assert given(namespace, VideoRequest) == {"seed": 3, "guidance_scale": 4.0}
    assert type(namespace.guidance_scale) is float
    assert given(namespace, OutputOptions) == {"codec": "av1"}
    assert given(namespace, RuntimeOptions) == {}
