"""An error as the command line says it: parameters as flags, and which command is the next step.

The runtime and the engines name parameters, because whoever embeds them has no command line.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from typing import Any

from ..building.build import BuildOptions
from ..bulk.options import BatchOptions
from ..errors import EngineMissingError, GraphError, MutoscopeError
from ..request import OutputOptions, RuntimeOptions, VideoRequest
from ..server.options import ServeOptions
from ..values.parameters import parameter
from .arguments import in_flags

NEXT_STEPS: dict[type[MutoscopeError], str] = {
    EngineMissingError: "`mutoscope build BUNDLE --target ...` builds engines",
    GraphError: "`mutoscope verify` checks a bundle, `mutoscope gpu-check` a GPU",
}


@dataclass(frozen=True)
class _OfExport:
    """The options of export that messages of the runtime name; it does not import that package to say so."""

    lora_inputs: bool = parameter("", False)
    video_input: bool = parameter("", False)


def on_the_command_line(error: MutoscopeError) -> str:
    """The message with flags in place of the parameters' names, and with the command that helps further, if any."""
    steps = [step for kind, step in NEXT_STEPS.items() if isinstance(error, kind)]
    return "; ".join([in_flags(str(error), _parameters()), *steps])


def _parameters() -> list[Field[Any]]:
    """Of all commands that run or build graphs; the prompt is not said by a flag."""
    kinds: tuple[type[Any], ...] = (
        VideoRequest,
        RuntimeOptions,
        OutputOptions,
        BuildOptions,
        BatchOptions,
        ServeOptions,
        _OfExport,
    )
    return [field for kind in kinds for field in fields(kind) if field.name != "prompt"]
