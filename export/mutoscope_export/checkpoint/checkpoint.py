"""A checkpoint in the Diffusers layout: its configuration, and its components one at a time.

Knows its folders and files, and how the classes of its components load. Knows nothing of any model line: which classes
a component may have is its family's business. No code and no pickle of a checkpoint ever runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from mutoscope.bundle.manifest import Demonstration
from mutoscope_engines.system.file_hash import file_sha256
from safetensors import SafetensorError

from ..errors import ExportError
from .given_weights import GivenWeights
from .stored_weights import (
    StoredWeights,
    is_hidden,
    read_headers,
    refuse_differences,
    refuse_not_finite,
    refuse_pointer,
)
from .tokenizer import load_tokenizer

INDEX = "model_index.json"
OVERRIDES = "mutoscope.json"
UNKNOWN = "unknown - see the checkpoint"
SCHEDULER = "scheduler"
TOKENIZERS = "tokenizer"  # what their names begin with


def parted(class_name: str) -> tuple[str, str]:
    """Module and name of a class as a family writes it, "library.Class"."""
    module, _, name = class_name.rpartition(".")
    return module, name


def class_of(class_name: str) -> Any:
    """The class of such a name, imported."""
    module, name = parted(class_name)
    return getattr(import_module(module), name)


class Overrides(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`mutoscope.json` in the top folder of a checkpoint: what its authors want a bundle to say. All of it is optional.

    Attributes:
        name: what a bundle says that it was made from, in place of a folder's name.
        defaults: replaces some of the family's `Defaults`, for a model made for another size or length.
        demonstration: what a small model understands.
        calibration_prompts: what a model that understands little is calibrated with.
    """

    name: str | None = None
    defaults: dict[str, Any] = {}
    demonstration: Demonstration | None = None
    attribution: str | None = None
    calibration_prompts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose components have classes that its family knows. Only its configuration is in memory.

    Attributes:
        name: a hub id with its revision, or the folder's name.
        index: what `model_index.json` says.
        classes: of each component that is needed, as the family's table has it.
        overrides: what `mutoscope.json` in the folder says.
        folders: of components that are not in `root`.
        given: the weights of networks that are not in their folders.
        video_input: whether a bundle of it is to take a video.
    """

    root: Path
    name: str
    index: Mapping[str, Any]
    classes: Mapping[str, str]
    overrides: Overrides
    folders: Mapping[str, Path] = field(default_factory=dict)
    given: Mapping[str, GivenWeights] = field(default_factory=dict)
    video_input: bool = False

    @property
    def pipeline(self) -> str:
        """The class of the pipeline."""
        return str(self.index["_class_name"])

    def folder(self, component: str) -> Path:
        """Where the files of a component are."""
        return self.folders.get(component, self.root / component)

    def config(self, component: str, file: str = "config.json") -> dict[str, Any]:
        """A configuration file of a component.

        Raises:
            ExportError: missing or damaged.
        """
        return read_json(self.folder(component) / file)

    @property
    def scheduler(self) -> dict[str, Any]:
        """The scheduler's configuration; the index may say its class.

        Raises:
            ExportError: missing or damaged.
        """
        _, class_name = parted(self.classes[SCHEDULER])
        return {"_class_name": class_name, **self.config(SCHEDULER, "scheduler_config.json")}

    @property
    def networks(self) -> list[str]:
        """The components that have weights."""
        return [name for name in self.classes if name != SCHEDULER and not name.startswith(TOKENIZERS)]

    def model_class(self, component: str) -> Any:
        """The class that loads a component."""
        return class_of(self.classes[component])

    def library(self, component: str) -> str:
        """By whose rules the files of a network are named and read: "diffusers" or "transformers"."""
        bases = self.model_class(component).__mro__
        return "transformers" if any(base.__module__.startswith("transformers.") for base in bases) else "diffusers"

    def without_weights(self, component: str) -> Any:
        """A network on the device that holds no data: its configuration with every default filled in.

        Raises:
            ExportError: its configuration is missing or damaged.
        """
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
        if component in self.given:
            return self.given[component].stored
        return read_headers(self.folder(component), self.library(component))

    def load(self, component: str) -> torch.nn.Module:
        """A component with its weights, in the type they are stored in. Drop it before the next is loaded.

        Raises:
            ExportError: its files are missing or damaged, or hold other weights than those of its class, or NaN.
        """
        model_class = self.model_class(component)
        model: torch.nn.Module
        try:
            model, found = model_class.from_pretrained(
                self.folder(component),
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
            model_class.__name__,
            **{kind: [key if isinstance(key, str) else key[0] for key in found[f"{kind}_keys"]] for kind in kinds},
        )
        refuse_not_finite(component, model)
        return model.eval().requires_grad_(False)

    def stored_type(self, component: str) -> str:
        """The type of a component's weights: "float32", or "bfloat16" or "float16" where all are in that.

        Raises:
            ExportError: a file is missing or damaged, or has weights in a type that is not read.
        """
        return str(self.weights(component).dtype).removeprefix("torch.")

    def tokenizer(self, component: str = "tokenizer") -> Any:
        """A tokenizer as the pipeline would load it.

        Raises:
            ExportError: its files are missing or damaged.
        """
        return load_tokenizer(self.folder(component), self.classes[component])

    def license(self) -> str:
        """What the front matter of README.md says under `license`, or that it is unknown."""
        readme = self.root / "README.md"
        text = readme.read_text("utf-8", errors="replace") if readme.is_file() else ""
        front_matter = re.match(r"---\n.*?\n---", text, re.DOTALL)
        found = re.search(r"^license: *(\S.*?) *$", front_matter.group(), re.MULTILINE) if front_matter else None
        return found.group(1).strip("\"'") if found else UNKNOWN

    def sha256_of_files(self, on_file: Callable[[str], None] = lambda _: None) -> dict[str, str]:
        """Hash of each file that export reads, by its path in the checkpoint, or the one that it would have there.

        Raises:
            ExportError: a weight file is missing or damaged.
        """
        hashes = {}
        for name, path in sorted(self._files()):
            on_file(name)
            hashes[name] = file_sha256(path)
        return hashes

    def _files(self) -> Iterator[tuple[str, Path]]:
        yield from ((name, path) for name in (INDEX, OVERRIDES) if (path := self.root / name).is_file())
        for component in self.classes:
            folder = self.folder(component)
            read = set(self.weights(component).files) if component in self.networks else set()
            yield from ((f"{component}/{path.name}", path) for path in read)
            for path in folder.rglob("*"):
                is_weights = path.name.endswith((".safetensors", ".safetensors.index.json"))
                if path.is_file() and not is_hidden(path, folder) and not is_weights:
                    yield f"{component}/{path.relative_to(folder).as_posix()}", path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint.

    Raises:
        ExportError: missing or damaged, or no object.
    """
    try:
        refuse_pointer(path)
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path.parent.name}/{path.name} is missing. Get the complete checkpoint again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path.parent.name}/{path.name} is not JSON: {error}. Get the checkpoint again") from error
    if not isinstance(content, dict):
        raise ExportError(f"{path.parent.name}/{path.name} is not a JSON object. Get the checkpoint again")
    return cast(dict[str, Any], content)
