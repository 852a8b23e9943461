"""The command line and the Python lines that make a video again. Knows both notations, and runs neither.

Both take what clients sent from files of the current folder, and a comment says which content of the video each is.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from ..codec import as_text
from ..planning.plan import Plan
from ..request import LORAS, OutputOptions, RuntimeOptions, VideoRequest
from ..values.parameters import Form
from .given_files import as_fields, ending_of, files_of, named

FILE_NAME = "video.mp4"


def shortest(request: VideoRequest, plan: Callable[[VideoRequest], Plan]) -> VideoRequest:
    """The request that says only what the bundle would not do unasked."""
    files: dict[str, Any] = {**as_fields(files_of(request)), **{name: getattr(request, name) for name in LORAS}}
    said = VideoRequest(prompt=request.prompt, seed=request.seed, **files)
    while True:
        planned = plan(said).request_of(**files)
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
        id: of the video, whose contents the files are.
    """
    comments, request = _with_files(request, id)
    words = ["mutoscope", "generate", "-o", FILE_NAME]
    words += ["--bundle", bundle] if bundle is not None else []
    for record in (request, options, output):
        for field in fields(record):
            value = getattr(record, field.name)
            if field.name == "prompt" or value == field.default:
                continue
            form: Form | None = field.metadata.get("form")
            flag = f"--{(field.metadata.get('singular') or field.name).replace('_', '-')}"
            if form is not None and form.several:
                words += [flag, *map(form.write, value)]
            else:
                words.append(f"{flag}={as_text(field, value)}")
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
    lora = "from mutoscope import Lora\n" if any(getattr(request, name) for name in LORAS) else ""
    return (
        f"{comments}{imports}import mutoscope\n{lora}\nrequest = mutoscope.VideoRequest(\n{asked})\n"
        f"with mutoscope.Pipeline.load({', '.join(opened)}) as pipeline:\n"
        f"    pipeline.generate(request).save({', '.join(saved)})\n"
    )


def _with_files(request: VideoRequest, id: str) -> tuple[str, VideoRequest]:
    """Comments that say what the files of a request are, and the request with files in place of pictures."""
    files, comments = dict[str, list[str]](), ""
    for field, given in files_of(request).items():
        files[field] = []
        for name, one in named({field: given}):
            file = f"{name}{ending_of(one)}"
            files[field].append(file)
            comments += f"# {file} is the content of {id} with variant={name}\n"
    return comments, replace(request, **as_fields(files))


def _literals(record: Any) -> dict[str, str]:
    given = {field.name: (getattr(record, field.name), field.default) for field in fields(record)}
    return {name: repr(value) for name, (value, default) in given.items() if value != default}
