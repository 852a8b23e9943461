"""Opens a checkpoint: finds it, validates it, and has its family describe it, before any weight is read.

Knows the order, and the table of families. Knows nothing of any model line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from mutoscope.bundle.conditionings import VideoConditioning
from mutoscope.bundle.manifest import Defaults
from mutoscope.values.loras import Lora
from mutoscope_engines.errors import GraphError
from mutoscope_engines.lora_file import read_lora

from .checkpoint.checkpoint import INDEX, OVERRIDES, Checkpoint, read_json
from .checkpoint.given_weights import GivenWeights, open_weights, refuse_other_formats, weights_of_files
from .checkpoint.location import download, locate
from .checkpoint.merging import FittingLora, merging
from .checkpoint.replacements import DENOISERS, Replacements, folder_of
from .checkpoint.staging import stage
from .checkpoint.stored_weights import names_of_weights, refuse_link_to_nothing, refuse_other_weights
from .checkpoint.validation import validated
from .errors import ExportError
from .families import FAMILIES, load_family
from .families.family import Description, Family


@dataclass(frozen=True)
class OpenedCheckpoint(Checkpoint):
    """A checkpoint that its family accepts.

    Attributes:
        loras: what is merged into the weights of a network, by component. `given` has these weights.
    """

    family: Family = field(kw_only=True)
    description: Description = field(kw_only=True)
    loras: Mapping[str, tuple[FittingLora, ...]] = field(default_factory=dict)


def open_checkpoint(checkpoint: str | Path, replaced: Replacements | None = None) -> OpenedCheckpoint:
    """Finds a checkpoint, downloads it where it is a hub id, and refuses what no family can export.

    Args:
        checkpoint: a folder in the Diffusers layout, or a hub id such as `Wan-AI/Wan2.1-T2V-1.3B-Diffusers`.
        replaced: parts that come from elsewhere, and LoRAs. Where there are such, `with_staged_weights` must be called
            before a network is loaded.

    Raises:
        ExportError: it is not there, or not supported, or a part does not fit; says what is.
    """
    try:
        return _open_checkpoint(checkpoint, replaced or Replacements())
    except OSError as error:
        raise ExportError(f"{checkpoint} cannot be read: {error}. Check its permissions") from error


def with_staged_weights(opened: OpenedCheckpoint, folder: Path, say: Callable[[str], None]) -> OpenedCheckpoint:
    """The same, with every weight as a library reads it; those that are not are written into a folder, merged.

    Args:
        folder: which outlives what is returned.
        say: told the component that is written.
    """
    folders = dict(opened.folders)
    for component, weights in opened.given.items():
        say(f"prepare {component}")
        change = merging(opened.loras[component]) if component in opened.loras else None
        folders[component] = stage(opened.folder(component) / "config.json", weights, folder / component, change)
    return replace(opened, folders=folders, given={})


def _open_checkpoint(checkpoint: str | Path, replaced: Replacements) -> OpenedCheckpoint:
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
    folders = _folders(replaced.parts)
    found = validated(root, name, index, family.PIPELINES[str(pipeline)], folders)
    found = replace(found, video_input=replaced.video_input)
    _refuse_absent(found, replaced)
    opened = OpenedCheckpoint(**vars(found), family=family, description=_described(family, found))
    _refuse_no_video(opened)
    if on_hub:
        wanted = [
            f"{component}/{file}"
            for component in opened.networks
            if component not in replaced.parts
            for file in names_of_weights(root / component, opened.library(component))
        ]
        download(str(checkpoint), wanted, revision=root.name)
    return _with_given_weights(opened, replaced)


def _folders(parts: Mapping[str, Path]) -> dict[str, Path]:
    """Of the parts that are folders; a denoiser may also be a file."""
    for component, path in parts.items():
        if not path.is_dir() and component not in DENOISERS:
            refuse_other_formats(path)
            raise ExportError(
                f"{path.name} is a file; the {component} is read from a folder in the Diffusers layout. Name that, or "
                "load the file with from_single_file of its class in Diffusers and save it with save_pretrained"
            )
    return {component: folder_of(component, path) for component, path in parts.items() if path.is_dir()}


def _refuse_absent(found: Checkpoint, replaced: Replacements) -> None:
    for component in (*replaced.parts, *replaced.loras):
        if component not in found.classes:
            raise ExportError(
                f"{found.name} has no {component}, which something was given for. It has {', '.join(found.networks)}"
            )


def _refuse_no_video(opened: OpenedCheckpoint) -> None:
    takes = any(isinstance(each, VideoConditioning) for each in opened.description.conditionings)
    if opened.video_input and not takes:
        raise ExportError(
            f"{opened.name} makes no video of another, so video_input is not for it. Leave it out, or name a "
            "text-to-video checkpoint such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        )


def _with_given_weights(opened: OpenedCheckpoint, replaced: Replacements) -> OpenedCheckpoint:
    """With the weights of every network compared with its class, and the LoRAs with the network."""
    given: dict[str, GivenWeights] = {}
    loras: dict[str, tuple[FittingLora, ...]] = {}
    for component in opened.networks:
        model = opened.without_weights(component)
        names = {name: opened.family.original_name(name) for name in model.state_dict()}
        path = replaced.parts.get(component)
        if path is not None and component not in opened.folders:
            given[component] = open_weights(path, names)
            _refuse_other_file(path, component, model, given[component])
            continue
        stored = opened.weights(component)
        refuse_other_weights(component, model, stored)
        if component in replaced.loras:
            given[component] = weights_of_files(stored.files)
    for component, its_loras in replaced.loras.items():
        model = opened.without_weights(component)
        loras[component] = tuple(_fitting(lora, model, opened.family) for lora in its_loras)
    return replace(opened, given=given, loras=loras)


def _refuse_other_file(path: Path, component: str, model: Any, weights: GivenWeights) -> None:
    try:
        refuse_other_weights(component, model, weights.stored)
    except ExportError as error:
        raise ExportError(
            f"{path.name} is not for the {component} of this checkpoint, whose config.json says its layers: {error}. "
            "File and checkpoint must be of one model, of one size, and both with or without layers that read a picture"
        ) from error


def _fitting(lora: Lora, model: Any, family: Family) -> FittingLora:
    refuse_other_formats(Path(lora.path))
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    try:
        return FittingLora(
            read_lora(Path(lora.path), shapes, {name: family.original_name(name) for name in shapes}), lora.strength
        )
    except GraphError as error:
        raise ExportError(str(error)) from error


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
