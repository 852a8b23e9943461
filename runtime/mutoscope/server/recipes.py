"""The command line and the Python lines that make a video again. Knows both notations, and runs neither."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import Any

from ..codec import as_text
from ..request import OutputOptions, RuntimeOptions, VideoRequest

FILE_NAME = "video.mp4"


def command_line(request: VideoRequest, bundle: str | None, options: RuntimeOptions, output: OutputOptions) -> str:
    """`mutoscope generate` with everything that the video follows from, quoted for a POSIX shell."""
    words = ["mutoscope", "generate", "-o", FILE_NAME]
    words += ["--bundle", bundle] if bundle is not None else []
    for record in (request, options, output):
        for field in fields(record):
            value = getattr(record, field.name)
            if field.name != "prompt" and value != field.default:
                words.append(f"--{field.name.replace('_', '-')}={as_text(field, value)}")
    return shlex.join([*words, "--", request.prompt])


def python_lines(request: VideoRequest, bundle: str | None, options: RuntimeOptions, output: OutputOptions) -> str:
    """A program that does the same."""
    opened = ([] if bundle is None else [repr(bundle)]) + [f"{k}={v}" for k, v in _literals(options).items()]
    saved = [repr(FILE_NAME)] + [f"{k}={v}" for k, v in _literals(output).items()]
    asked = "".join(f"    {name}={value},\n" for name, value in _literals(request).items())
    imports = "from fractions import Fraction\n\n" if "Fraction(" in asked else ""
    return (
        f"{imports}import mutoscope\n\nrequest = mutoscope.VideoRequest(\n{asked})\n"
        f"with mutoscope.Pipeline.load({', '.join(opened)}) as pipeline:\n"
        f"    pipeline.generate(request).save({', '.join(saved)})\n"
    )


def _literals(record: Any) -> dict[str, str]:
    given = {field.name: (getattr(record, field.name), field.default) for field in fields(record)}
    return {name: repr(value) for name, (value, default) in given.items() if value != default}
