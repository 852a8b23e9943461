"""A checkpoint in the Diffusers layout: judged before its weights are read, and then its components one at a time.

Knows its folders and configuration files, and the classes that a component may have. Knows nothing of any model line:
that is its family's business. No code and no pickle of a checkpoint ever runs.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from mutoscope.solvers.schedule import ScheduleError, from_diffusers
from safetensors import SafetensorError

from ..errors import ExportError
from ..families import FAMILIES, Family, load_family
from .location import PICKLES, download, locate
from .stored_weights import (
    StoredWeights,
    is_hidden,
    names_of_weights,
    read_headers,
    refuse_differences,
    refuse_link_to_nothing,
    refuse_not_finite,
    refuse_other_weights,
    refuse_pointer,
)
from .tokenizer import READS_SERIALIZED, SERIALIZED, class_that_loads, load_tokenizer

INDEX = "model_index.json"
OVERRIDES = "mutoscope.json"
UNKNOWN = "unknown - see the checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that its family accepts. Nothing of it is in memory but its configuration."""

    root: Path
    name: str  # a hub id with its revision, or the folder's name
    pipeline: str  # its class, one of `FAMILIES`
    family: Family
    classes: Mapping[str, str]  # of each component, as the family's table has it
    overrides: Mapping[str, Any]  # what `mutoscope.json` in the folder says

    def config(self, component: str, file: str = "config.json") -> dict[str, Any]:
        """A configuration file of a component.

        Raises:
            ExportError: missing or damaged.
        """
        return _read_json(self.root / component / file)

    @property
    def scheduler(self) -> dict[str, Any]:
        """The scheduler's configuration: the pipeline's own, or the checkpoint's, where the index may say the class."""
        if own := self.family.SCHEDULERS.get(self.pipeline):
            return dict(own)
        _, class_name = self.classes["scheduler"].split(".")
        return {"_class_name": class_name, **self.config("scheduler", "scheduler_config.json")}

    @property
    def networks(self) -> list[str]:
        """The components that have weights."""
        return [name for name in self.family.COMPONENTS if name not in ("tokenizer", "scheduler")]

    def model_class(self, component: str) -> Any:
        library, class_name = self.classes[component].split(".")
        return getattr(import_module(library), class_name)

    def without_weights(self, component: str) -> Any:
        """A network on the device that holds no data: its configuration with every default filled in."""
        model, config = self.model_class(component), self.config(component)
        with torch.device("meta"):
            if config_class := getattr(model, "config_class", None):  # of transformers
                return model(config_class.from_dict(config))
            return model.from_config(config)

    def weights(self, component: str) -> StoredWeights:
        """What the headers of its weight files say.

        Raises:
            ExportError: a file is missing or damaged, or has weights in a type that is not read.
        """
        library, _ = self.classes[component].split(".")
        return read_headers(self.root / component, library)

    def load(self, component: str) -> torch.nn.Module:
        """A component with its weights, in the type they are stored in. Drop it before the next is loaded.

        Raises:
            ExportError: its files are missing or damaged, or hold other weights than those of its class, or NaN.
        """
        class_of = self.model_class(component)
        model: torch.nn.Module
        try:
            model, found = class_of.from_pretrained(
                self.root / component,
                torch_dtype=self.weights(component).dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are listed
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ExportError(
                f"{component} of {self.name} cannot be loaded: {error}. Get the checkpoint again"
            ) from error
        except ImportError as error:  # also what a library raises for a package whose metadata it asks for
            raise ExportError(
                f"{component} of {self.name} cannot be loaded, because a package is missing: {error}. Install it, or "
                "get the checkpoint as its authors published it"
            ) from error
        # What libraries load with a warning and random numbers; what a class ignores they left out.
        kinds = ("missing", "unexpected", "mismatched")
        refuse_differences(
            component,
            class_of.__name__,
            **{kind: [key if isinstance(key, str) else key[0] for key in found[f"{kind}_keys"]] for kind in kinds},
        )
        refuse_not_finite(component, model)
        return model.eval().requires_grad_(False)

    def stored_type(self, component: str) -> str:
        """The type of a component's weights: "float32", or "bfloat16" or "float16" where all are in that."""
        return str(self.weights(component).dtype).removeprefix("torch.")

    def tokenizer(self) -> Any:
        """The tokenizer as its pipeline would load it.

        Raises:
            ExportError: its files are missing or damaged.
        """
        return load_tokenizer(self.root / "tokenizer", self.classes["tokenizer"])

    def license(self) -> str:
        """What the front matter of README.md says under `license`, or that it is unknown."""
        readme = self.root / "README.md"
        text = readme.read_text("utf-8", errors="replace") if readme.is_file() else ""
        front_matter = re.match(r"---\n.*?\n---", text, re.DOTALL)
        found = re.search(r"^license: *(\S.*?) *$", front_matter.group(), re.MULTILINE) if front_matter else None
        return found.group(1).strip("\"'") if found else UNKNOWN

    def sha256_of_files(self, on_file: Callable[[str], None] = lambda _: None) -> dict[str, str]:
        """Hash of each file that export reads, by its path in the checkpoint."""
        hashes = {}
        for path in sorted(self._files()):
            name = path.relative_to(self.root).as_posix()
            on_file(name)
            with path.open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return hashes

    def _files(self) -> Iterator[Path]:
        yield from (path for path in (self.root / INDEX, self.root / OVERRIDES) if path.is_file())
        for component in self.family.COMPONENTS:
            read = set(self.weights(component).files) if component in self.networks else set()
            for path in (self.root / component).rglob("*"):
                is_other_weights = path.suffix == ".safetensors" and path not in read
                if path.is_file() and not is_hidden(path, self.root) and not is_other_weights:
                    yield path


def open_checkpoint(checkpoint: str | Path) -> Checkpoint:
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


def _open_checkpoint(checkpoint: str | Path) -> Checkpoint:
    root, name, on_hub = locate(checkpoint)
    refuse_link_to_nothing(root / INDEX)
    if not (root / INDEX).is_file():
        raise ExportError(
            f"{checkpoint} has no {INDEX}: not a checkpoint in the Diffusers layout. "
            "Name its top folder, or a hub id that ends in -Diffusers"
        )
    index = _read_json(root / INDEX)
    pipeline = index.get("_class_name")
    if pipeline not in tuple(FAMILIES):  # compared, not hashed: JSON may hold a list here
        raise ExportError(f"{name} is a checkpoint for {pipeline!r}; supported: {', '.join(FAMILIES)}")
    family = load_family(str(pipeline))
    if own := family.SCHEDULERS.get(str(pipeline)):
        index["scheduler"] = ["diffusers", own["_class_name"]]
    classes = {component: _supported_class(root, name, index, component, family) for component in family.COMPONENTS}
    _refuse_pickles(root, family)
    overrides = _read_json(root / OVERRIDES) if (root / OVERRIDES).is_file() else {}
    opened = Checkpoint(root, name, str(pipeline), family, classes, overrides)
    _refuse_contradictions(opened)
    _refuse_unsupported(opened, index)
    if on_hub:
        wanted = [
            f"{component}/{file}"
            for component in opened.networks
            for file in names_of_weights(root / component, classes[component].split(".")[0])
        ]
        download(str(checkpoint), wanted, revision=root.name)
    for component in opened.networks:
        refuse_other_weights(component, opened.without_weights(component), opened.weights(component))
    return opened


def _supported_class(root: Path, name: str, index: Mapping[str, Any], component: str, family: Family) -> str:
    """The class of a component, from the family's table: a checkpoint must not choose what is imported.

    Of a tokenizer with a serialized vocabulary, it may choose among the tokenizers of transformers.
    """
    supported = family.COMPONENTS[component]
    entry = index.get(component)
    for known in supported:
        if entry == known.split("."):
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
    for component in opened.family.COMPONENTS:
        if component == "tokenizer":
            continue
        file = "scheduler_config.json" if component == "scheduler" else "config.json"
        config = opened.scheduler if component == "scheduler" else opened.config(component)
        library, class_name = opened.classes[component].split(".")
        named = config.get("_class_name" if library == "diffusers" else "architectures")
        if not _agrees(named, library, class_name):
            raise ExportError(
                f"{INDEX} says that the {component} of {opened.name} is {class_name}, and {component}/{file} says "
                f"{named!r}. Diffusers follows {INDEX}; make them agree"
            )
        if library == "transformers":
            _refuse_other_files(opened.root / component, config)
        if (quantization := config.get("quantization_config")) is not None:
            raise ExportError(
                f"{component} of {opened.name} is quantized ({quantization!r:.80}), and that is not read. "
                "Get the checkpoint as its authors published it, not quantized"
            )


def _agrees(named: Any, library: str, class_name: str) -> bool:
    """Whether a configuration file names this class, none, or a larger class of transformers around it."""
    if named in (None, [], class_name, [class_name]):
        return True
    module = import_module(library)
    configuration = getattr(getattr(module, class_name), "config_class", None)
    return (
        configuration is not None
        and isinstance(named, list)
        and all(getattr(getattr(module, str(name), None), "config_class", None) is configuration for name in named)
    )


def _refuse_other_files(folder: Path, config: Mapping[str, Any]) -> None:
    """transformers follows two files to other weights than those that are judged here."""
    if (other := config.get("transformers_weights")) is not None:
        raise ExportError(
            f"{folder.name}/config.json names {other!r} under transformers_weights, and transformers would read that "
            "in place of model.safetensors. Save the model anew with save_pretrained, or remove that line if "
            "model.safetensors has the right weights"
        )
    if (folder / "adapter_config.json").exists():
        raise ExportError(
            f"{folder.name} holds adapter_config.json, and transformers adds the adapter to the weights where peft is "
            "installed. Merge it with peft's merge_and_unload and save the model anew, or remove the file"
        )


def _refuse_unsupported(opened: Checkpoint, index: Mapping[str, Any]) -> None:
    try:
        from_diffusers(opened.scheduler)
        opened.family.refuse_unsupported(opened, index)
    except ExportError:
        raise
    except (ScheduleError, ValueError) as error:
        raise ExportError(f"{opened.name} is refused: {error}") from error
    except Exception as error:  # which one a value of the wrong kind raises is up to the libraries that read it
        raise ExportError(
            f"a configuration file of {opened.name} holds something of the wrong kind: "
            f"{type(error).__name__}: {error}. Get the checkpoint again"
        ) from error


def _refuse_pickles(root: Path, family: Family) -> None:
    for component in family.COMPONENTS:
        paths = [path for path in (root / component).rglob("*") if path.suffix.lower() in PICKLES]
        pickles = sorted(path.name for path in paths if not is_hidden(path, root))
        if pickles:
            raise ExportError(
                f"{component} holds {', '.join(pickles)}, pickled weights, which can run code when they are opened. "
                "Only safetensors are read: save the checkpoint anew with safe_serialization=True, or remove the "
                "file if the same weights are there as safetensors"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        refuse_pointer(path)
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path.parent.name}/{path.name} is missing. Get the checkpoint again, whole") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path.parent.name}/{path.name} is not JSON: {error}. Get the checkpoint again") from error
    if not isinstance(content, dict):
        raise ExportError(f"{path.parent.name}/{path.name} is not a JSON object. Get the checkpoint again")
    return cast(dict[str, Any], content)
