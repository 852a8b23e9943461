"""A checkpoint in the Diffusers layout: where it lies, what is in it, and its components one at a time.

Knows folders, the hub, safetensors and the classes that a component may have. Knows nothing of any model line: that is
its family's business. No code and no pickle of a checkpoint ever runs.
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
from mutoscope.schedule import ScheduleError, from_diffusers
from safetensors import SafetensorError, safe_open

from .errors import ExportError
from .families import FAMILIES, Family, load_family

INDEX = "model_index.json"
OVERRIDES = "mutoscope.json"
UNKNOWN = "unknown - see the checkpoint"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.md", "LICENSE*"]
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_WIDTHS = {"BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that its family accepts. Nothing of it is in memory but its configuration."""

    root: Path
    name: str  # a hub id with its revision, or the folder's name
    family: Family
    overrides: Mapping[str, Any]  # what `mutoscope.json` in the folder says

    def config(self, component: str, file: str = "config.json") -> dict[str, Any]:
        """A configuration file of a component.

        Raises:
            ExportError: missing or damaged.
        """
        return _read_json(self.root / component / file)

    @property
    def scheduler(self) -> dict[str, Any]:
        return self.config("scheduler", "scheduler_config.json")

    def model_class(self, component: str) -> Any:
        return _resolve(_read_json(self.root / INDEX)[component])

    def load(self, component: str) -> torch.nn.Module:
        """A component with its weights, in the type they are stored in. Drop it before the next is loaded.

        Raises:
            ExportError: its files are missing or damaged.
        """
        folder = self.root / component
        dtype = _stored_dtype(folder)
        try:
            model: torch.nn.Module = self.model_class(component).from_pretrained(
                folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ExportError(
                f"{component} of {self.name} cannot be loaded: {error}. Get the checkpoint again"
            ) from error
        return model.eval().requires_grad_(False)

    def tokenizer(self) -> Any:
        """The tokenizer as `WanPipeline` would load it."""
        try:
            return self.model_class("tokenizer").from_pretrained(self.root / "tokenizer", local_files_only=True)
        except (OSError, ValueError) as error:
            raise ExportError(f"the tokenizer of {self.name} cannot be loaded: {error}") from error

    def license(self) -> str:
        """What the front matter of README.md says under `license`, or that it is unknown."""
        readme = self.root / "README.md"
        front_matter = re.match(r"---\n.*?\n---", readme.read_text("utf-8"), re.DOTALL) if readme.is_file() else None
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
            yield from (path for path in (self.root / component).rglob("*") if path.is_file())


def open_checkpoint(checkpoint: str | Path) -> Checkpoint:
    """Finds a checkpoint, downloads it where it is a hub id, and refuses what no family can export.

    Args:
        checkpoint: a folder in the Diffusers layout, or a hub id such as `Wan-AI/Wan2.1-T2V-1.3B-Diffusers`.

    Raises:
        ExportError: it is not there, or not supported; says what is.
    """
    root, name = _locate(checkpoint)
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
    _refuse_other_components(name, index, family)
    _refuse_pickles(root, family)
    overrides = _read_json(root / OVERRIDES) if (root / OVERRIDES).is_file() else {}
    opened = Checkpoint(root, name, family, overrides)
    try:
        from_diffusers(opened.scheduler)
        family.refuse_unsupported(opened, index)
    except (ScheduleError, ValueError) as error:
        raise ExportError(f"{name} is refused: {error}") from error
    return opened


def _locate(checkpoint: str | Path) -> tuple[Path, str]:
    root = Path(checkpoint)
    if root.is_dir():
        return root, root.resolve().name
    if isinstance(checkpoint, Path) or not _HUB_ID.fullmatch(checkpoint):
        raise ExportError(
            f"there is no checkpoint at {checkpoint}: not a folder, and not a hub id such as "
            "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        )
    from huggingface_hub import snapshot_download

    try:
        root = Path(snapshot_download(checkpoint, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's client raises errors of several libraries
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(
            f"{checkpoint} is no folder here, and could not be had from the hub: {cause}. "
            "Check the name and the network, or download it elsewhere and name the folder"
        ) from error
    return root, f"{checkpoint}@{root.name}"


def _refuse_other_components(name: str, index: Mapping[str, Any], family: Family) -> None:
    for component, supported in family.COMPONENTS.items():
        entry = index.get(component)
        given = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if given not in supported:
            raise ExportError(f"the {component} of {name} is {given!r}; supported: {', '.join(supported)}")


def _refuse_pickles(root: Path, family: Family) -> None:
    for component in family.COMPONENTS:
        pickles = sorted(path.name for path in (root / component).rglob("*") if path.suffix in _PICKLES)
        if pickles:
            raise ExportError(
                f"{component} holds {', '.join(pickles)}, pickled weights, which can run code when they are opened. "
                "Only safetensors are read: save the checkpoint anew with safe_serialization=True, or remove the "
                "file if the same weights are there as safetensors"
            )


def _resolve(entry: list[str]) -> Any:
    library, class_name = entry
    return getattr(import_module(library), class_name)


def _stored_dtype(folder: Path) -> torch.dtype:
    """The narrowest type that holds all of a component's weights without loss.

    Raises:
        ExportError: there are no safetensors, or they are damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ExportError(f"{folder.name} has no .safetensors file. Get the checkpoint again, whole")
    found: set[torch.dtype] = set()
    for path in files:
        try:
            with safe_open(path, "pt") as weights:
                found |= {_WIDTHS.get(weights.get_slice(key).get_dtype(), torch.float32) for key in weights.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ExportError(f"{folder.name}/{path.name} is damaged: {error}. Get the checkpoint again") from error
    return found.pop() if len(found) == 1 else torch.float32


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path.parent.name}/{path.name} is missing. Get the checkpoint again, whole") from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path.parent.name}/{path.name} is not JSON: {error}. Get the checkpoint again") from error
    if not isinstance(content, dict):
        raise ExportError(f"{path.parent.name}/{path.name} is not a JSON object. Get the checkpoint again")
    return cast(dict[str, Any], content)
