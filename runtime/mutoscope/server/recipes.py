"""The command line and the Python lines that make a video again. Knows both notations, and runs neither.

Both take pictures from files of the current folder, and a comment says which content of the video each of them is.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from ..codec import as_text
from ..planning.plan import Plan
from ..request import LORAS, OutputOptions, RuntimeOptions, VideoRequest
from ..values.loras import LORA
from .given_pictures import pictures_of

FILE_NAME = "video.mp4"


def shortest(request: VideoRequest, plan: Callable[[VideoRequest], Plan]) -> VideoRequest:
    """The request that says only what the bundle would not do unasked."""
    files: dict[str, Any] = {**pictures_of(request), **{name: getattr(request, name) for name in LORAS}}
    said = VideoRequest(prompt=request.prompt, seed=request.seed, **files)
    while True:
        planned = plan(said).to_request(**files)
        names = [each.name for each in fields(VideoRequest)]
        missing = {each: getattr(request, each) for each in names if getattr(planned, each) != getattr(request, each)}
        if not missing or all(getattr(said, name) == value for name, value in missing.items()):
            return said
        said = replace(said, **missing)


def command_line(
    request: VideoRequest, bundle: str | None, options: RuntimeOptions, output: OutputOptions, id: str = ""
) -> str:
    """`mutoscope generate` with everything that the video follows from, quoted for a POSIX shell.

    Args:
        id: of the video, whose contents its pictures are.
    """
    comments, request = _with_files(request, id)
    words = ["mutoscope", "generate", "-o", FILE_NAME]
    words += ["--bundle", bundle] if bundle is not None else []
    for record in (request, options, output):
        for field in fields(record):
            value = getattr(record, field.name)
            if field.name == "prompt" or value == field.default:
                continue
            if field.name in LORAS:
                words += [f"--{field.metadata['singular'].replace('_', '-')}", *map(LORA.write, value)]
            else:
                words.append(f"--{field.name.replace('_', '-')}={as_text(field, value)}")
    return comments + shlex.join([*words, "--", request.prompt])


def python_lines(
    request: VideoRequest, bundle: str | None, options: RuntimeOptions, output: OutputOptions, id: str = ""
) -> str:
    """A program that does the same."""
    comments, request = _with_files(request, id)
    opened = ([] if bundle is None else [repr(bundle)]) + [f"{k}={v}" for k, v in _literals(options).items()]
    saved = [repr(FILE_NAME)] + [f"{k}={v}" for k, v in _literals(output).items()]
    asked = "".join(f"    {name}={value},\n" for name, value in _literals(request).items())
    imports = "from fractions import Fraction\n\n" if "Fraction(" in asked else ""
    named = "from mutoscope import Lora\n" if any(getattr(request, name) for name in LORAS) else ""
    return (
        f"{comments}{imports}import mutoscope\n{named}\nrequest = mutoscope.VideoRequest(\n{asked})\n"
        f"with mutoscope.Pipeline.load({', '.join(opened)}) as pipeline:\n"
        f"    pipeline.generate(request).save({', '.join(saved)})\n"
    )


def _with_files(request: VideoRequest, id: str) -> tuple[str, VideoRequest]:
    """Comments that say what the files of a request are, and the request with files in place of pictures."""
    files: dict[str, Any] = {name: f"{name}.png" for name in pictures_of(request)}
    comments = [f"# {file} is the content of {id} with variant={name}\n" for name, file in files.items()]
    return "".join(comments), replace(request, **files)


def _literals(record: Any) -> dict[str, str]:
    given = {field.name: (getattr(record, field.name), field.default) for field in fields(record)}
    return {name: repr(value) for name, (value, default) in given.items() if value != default}
