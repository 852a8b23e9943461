"""What a caller puts in the place of a checkpoint's own weights, and what is merged into them.

Knows paths and strengths. Knows nothing of what files hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mutoscope.errors import RequestError
from mutoscope.values.loras import LORA, Lora, parse_lora

from ..errors import ExportError

DENOISERS = ("transformer", "transformer_2")
_CONFIG = "config.json"


@dataclass(frozen=True)
class Replacements:
    """What a caller asks for beside a checkpoint.

    Attributes:
        parts: files and folders by component.
        loras: by component, in the order in which they are added.
        video_input: whether the bundle is to take a video.
    """

    parts: Mapping[str, Path] = field(default_factory=dict)
    loras: Mapping[str, tuple[Lora, ...]] = field(default_factory=dict)
    video_input: bool = False


def replacements(
    transformers: Sequence[str], others: Mapping[str, str | None], loras: Sequence[Sequence[str]]
) -> Replacements:
    """From what a caller wrote.

    Args:
        transformers: files or folders, that of the first steps first.
        others: folders of other components.
        loras: for each transformer its LoRAs, "FILE" or "FILE:STRENGTH".

    Raises:
        RequestError: there are more transformers than any model has, or a strength is no number.
    """
    if isinstance(transformers, str) or len(transformers) > len(DENOISERS):
        raise RequestError(f"transformer must be a tuple of one or two files; got {transformers!r}")
    parts = dict(zip(DENOISERS, map(Path, transformers), strict=False))
    parts |= {component: Path(folder) for component, folder in others.items() if folder is not None}
    named = zip(DENOISERS, ("lora", "lora_2"), loras, strict=True)
    merged = {component: tuple(_lora(name, text) for text in given) for component, name, given in named if given}
    return Replacements(parts, merged)


def folder_of(component: str, path: Path) -> Path:
    """The folder of a component: the one that is named, or the component's own in that of a checkpoint.

    Raises:
        ExportError: it has no configuration.
    """
    for folder in (path, path / component):
        if (folder / _CONFIG).is_file():
            return folder
    raise ExportError(
        f"{path} is no folder of a {component}: it has no {_CONFIG}. Name a folder in the Diffusers layout, with its "
        "configuration and weights"
    )


def _lora(parameter: str, text: str) -> Lora:
    if (lora := parse_lora(text)) is None:
        raise RequestError(f"{parameter} must be {LORA.in_text}; got {text!r}")
    return lora
