"""Whether the files of a checkpoint say one thing, and only what is safe to load.

Knows the index and the configuration files of components. The classes that they may have are given; knows nothing of
any model line, and reads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ExportError
from .checkpoint import INDEX, OVERRIDES, SCHEDULER, TOKENIZERS, Checkpoint, Overrides, class_of, parted, read_json
from .location import PICKLES
from .stored_weights import is_hidden
from .tokenizer import READS_SERIALIZED, SERIALIZED, class_that_loads

NONE = "none"  # among the classes of a component that may be absent
Components = Mapping[str, tuple[str, ...]]
"""Each component, and the classes that it may have, "library.Class", or `NONE`."""


def validated(
    root: Path, name: str, index: Mapping[str, Any], components: Components, folders: Mapping[str, Path]
) -> Checkpoint:
    """The checkpoint in a folder whose index was read.

    Args:
        folders: of components that are somewhere else.

    Raises:
        ExportError: a component is missing or of another class, its files contradict each other or hold a pickle, or
            its `mutoscope.json` has a field that is not known or of another type.
    """
    classes = {
        component: _supported_class(root, name, index.get(component), component, supported)
        for component, supported in components.items()
        if not (NONE in supported and index.get(component) in (None, [None, None]))
    }
    checkpoint = Checkpoint(root, name, index, classes, _overrides(root, name), folders)
    _refuse_pickles(checkpoint, components)
    _refuse_contradictions(checkpoint)
    return checkpoint


def _overrides(root: Path, name: str) -> Overrides:
    if not (root / OVERRIDES).is_file():
        return Overrides()
    try:
        return msgspec.convert(read_json(root / OVERRIDES), Overrides)
    except msgspec.ValidationError as error:
        raise ExportError(f"{OVERRIDES} of {name} is wrong: {error}") from error


def _supported_class(root: Path, name: str, entry: Any, component: str, supported: tuple[str, ...]) -> str:
    """The class of a component, from the family's table: a checkpoint must not choose what is imported.

    Of a tokenizer with a serialized vocabulary, it may choose among the tokenizers of transformers.
    """
    for known in supported:
        if entry == list(parted(known)):
            return known
    if READS_SERIALIZED in supported:
        if (root / component / SERIALIZED).is_file():
            match entry:
                case ["transformers", str(class_name)] if found := class_that_loads(class_name):
                    return found
        supported = (*supported, f"any other tokenizer of transformers with a {SERIALIZED}")
    raise ExportError(f"the {component} of {name} is {entry!r}; supported: {', '.join(supported)}")


def _refuse_contradictions(opened: Checkpoint) -> None:
    """A class that a component's own configuration names must be that of the index, which is the one that loads it."""
    for component in opened.classes:
        if component.startswith(TOKENIZERS):
            continue
        file = "scheduler_config.json" if component == SCHEDULER else "config.json"
        config = opened.scheduler if component == SCHEDULER else opened.config(component)
        library, (_, class_name) = opened.library(component), parted(opened.classes[component])
        named = config.get("_class_name" if library == "diffusers" else "architectures")
        if not _agrees(named, opened.classes[component]):
            raise ExportError(
                f"{INDEX} says that the {component} of {opened.name} is {class_name}, and {component}/{file} says "
                f"{named!r}. Diffusers follows {INDEX}; make them agree"
            )
        if library == "transformers":
            _refuse_other_files(opened.folder(component), config)
        if (quantization := config.get("quantization_config")) is not None:
            raise ExportError(
                f"{component} of {opened.name} is quantized ({quantization!r:.80}), which export does not read. "
                "Get the checkpoint as its authors published it, not quantized"
            )


def _agrees(named: Any, known: str) -> bool:
    """Whether a configuration file names this class, none, or a larger class of transformers around it."""
    module, class_name = parted(known)
    if named in (None, [], class_name, [class_name]):
        return True
    configuration = getattr(class_of(known), "config_class", None)
    return (
        configuration is not None
        and isinstance(named, list)
        and all(
            getattr(getattr(import_module(module), str(name), None), "config_class", None) is configuration
            for name in named
        )
    )


def _refuse_other_files(folder: Path, config: Mapping[str, Any]) -> None:
    """transformers follows two files to other weights than those that are validated here."""
    if (other := config.get("transformers_weights")) is not None:
        raise ExportError(
            f"{folder.name}/config.json names {other!r} under transformers_weights, and transformers would read that "
            "in place of model.safetensors. Save the model again with save_pretrained, or remove that line if "
            "model.safetensors has the right weights"
        )
    if (folder / "adapter_config.json").exists():
        raise ExportError(
            f"{folder.name} holds adapter_config.json, and transformers adds the adapter to the weights where peft is "
            "installed. Merge it with peft's merge_and_unload and save the model again, or remove the file"
        )


def _refuse_pickles(opened: Checkpoint, components: Components) -> None:
    for component in components:
        folder = opened.folder(component)
        paths = [path for path in folder.rglob("*") if path.suffix.lower() in PICKLES]
        pickles = sorted(path.name for path in paths if not is_hidden(path, folder))
        if pickles:
            raise ExportError(
                f"{component} holds {', '.join(pickles)}, pickled weights, which can run code when they are opened. "
                "Only safetensors are read: save the checkpoint again with safe_serialization=True, or remove the "
                "file if the same weights are there as safetensors"
            )
