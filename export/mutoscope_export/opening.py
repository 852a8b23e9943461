"""Opens a checkpoint: finds it, validates it, and has its family describe it, before any weight is read.

Knows the order, and the table of families. Knows nothing of any model line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from mutoscope.bundle.manifest import Defaults

from .checkpoint.checkpoint import INDEX, OVERRIDES, Checkpoint, read_json
from .checkpoint.location import download, locate
from .checkpoint.stored_weights import names_of_weights, refuse_link_to_nothing, refuse_other_weights
from .checkpoint.validation import validated
from .errors import ExportError
from .families import FAMILIES, load_family
from .families.family import Description, Family


@dataclass(frozen=True)
class OpenedCheckpoint(Checkpoint):
    """A checkpoint that its family accepts."""

    family: Family
    description: Description


def open_checkpoint(checkpoint: str | Path) -> OpenedCheckpoint:
    """Finds a checkpoint, downloads it where it is a hub id, and refuses what no family can export.

    Args:
        checkpoint: a folder in the Diffusers layout, or a hub id such as `Wan-AI/Wan2.1-T2V-1.3B-Diffusers`.

    Raises:
        ExportError: it is not there, or not supported; says what is.
    """
    try:
        return _open_checkpoint(checkpoint)
    except OSError as error:
        raise ExportError(f"{checkpoint} cannot be read: {error}. Check its permissions") from error


def _open_checkpoint(checkpoint: str | Path) -> OpenedCheckpoint:
    root, name, on_hub = locate(checkpoint)
    refuse_link_to_nothing(root / INDEX)
    if not (root / INDEX).is_file():
        raise ExportError(
            f"{checkpoint} has no {INDEX}: not a checkpoint in the Diffusers layout. "
            "Name its top folder, or a hub id that ends in -Diffusers"
        )
    index = read_json(root / INDEX)
    pipeline = index.get("_class_name")
    if pipeline not in tuple(FAMILIES):  # compared, not hashed: JSON may hold a list here
        raise ExportError(f"{name} is a checkpoint for {pipeline!r}; supported: {', '.join(FAMILIES)}")
    family = load_family(str(pipeline))
    found = validated(root, name, index, family.PIPELINES[str(pipeline)])
    opened = OpenedCheckpoint(**vars(found), family=family, description=_described(family, found))
    if on_hub:
        wanted = [
            f"{component}/{file}"
            for component in opened.networks
            for file in names_of_weights(root / component, opened.library(component))
        ]
        download(str(checkpoint), wanted, revision=root.name)
    for component in opened.networks:
        refuse_other_weights(component, opened.without_weights(component), opened.weights(component))
    return opened


def _described(family: Family, checkpoint: Checkpoint) -> Description:
    """What its family says of a checkpoint, with the defaults that its authors wish."""
    try:
        described = family.describe(checkpoint)
    except ExportError:
        raise
    except ValueError as error:
        raise ExportError(f"{checkpoint.name} is refused: {error}") from error
    except Exception as error:  # which one a value of the wrong kind raises is up to the libraries that read it
        raise ExportError(
            f"a configuration file of {checkpoint.name} holds a value of the wrong type: "
            f"{type(error).__name__}: {error}. Get the checkpoint again"
        ) from error
    wished = checkpoint.overrides.defaults
    if "guidance_scale" in wished:  # as in a request, it is for all experts
        experts = tuple(msgspec.structs.replace(each, guidance_scale=None) for each in described.experts)
        described = replace(described, experts=experts)
    try:
        given = msgspec.to_builtins(described.defaults) | wished
        return replace(described, defaults=msgspec.convert(given, Defaults))
    except msgspec.ValidationError as error:
        raise ExportError(f"defaults in {OVERRIDES} of {checkpoint.name} are wrong: {error}") from error
