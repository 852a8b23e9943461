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
_HUB_DESCRIPTION = ["*.json", "*.txt", "*.model", "*.md", "LICENSE*"]
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that its family accepts. Nothing of it is in memory but its configuration."""

    root: Path
    name: str  # a hub id with its revision, or the folder's name
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
        return self.config("scheduler", "scheduler_config.json")

    def model_class(self, component: str) -> Any:
        library, class_name = self.classes[component].split(".")
        return getattr(import_module(library), class_name)

    def load(self, component: str) -> torch.nn.Module:
        """A component with its weights, in the type they are stored in. Drop it before the next is loaded.

        Raises:
            ExportError: its files are missing or damaged, or do not hold exactly the weights of its class.
        """
        folder = self.root / component
        dtype = _stored_dtype(folder)
        model: torch.nn.Module
        try:
            model, found = self.model_class(component).from_pretrained(
                folder,
                torch_dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are listed
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ExportError(
                f"{component} of {self.name} cannot be loaded: {error}. Get the checkpoint again"
            ) from error
        _refuse_other_weights(component, self.name, found)
        return model.eval().requires_grad_(False)

    def stored_type(self, component: str) -> str:
        """The type of a component's weights: "float32", or "bfloat16" or "float16" where all are in that."""
        return str(_stored_dtype(self.root / component)).removeprefix("torch.")

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
    root, name, on_hub = _locate(checkpoint)
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
    classes = {component: _supported_class(name, index, component, family) for component in family.COMPONENTS}
    _refuse_pickles(root, family)
    overrides = _read_json(root / OVERRIDES) if (root / OVERRIDES).is_file() else {}
    opened = Checkpoint(root, name, family, classes, overrides)
    _refuse_unsupported(opened, index)
    if on_hub:
        weights = [f"{component}/*.safetensors" for component in family.COMPONENTS]
        _download(str(checkpoint), weights, revision=root.name)
    return opened


def _locate(checkpoint: str | Path) -> tuple[Path, str, bool]:
    """Where it lies, what to call it, and whether its weights are still on the hub."""
    root = Path(checkpoint)
    if root.is_dir():
        return root, root.resolve().name, False
    if isinstance(checkpoint, Path) or not _HUB_ID.fullmatch(checkpoint):
        raise ExportError(
            f"there is no checkpoint at {checkpoint}: not a folder, and not a hub id such as "
            "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        )
    root = _download(checkpoint, _HUB_DESCRIPTION)
    return root, f"{checkpoint}@{root.name}", True


def _download(hub_id: str, patterns: list[str], *, revision: str | None = None) -> Path:
    """The folder of a revision (the newest where none is given), with at least the files of these patterns."""
    from huggingface_hub import constants, snapshot_download

    # Its client names PyTorch's version and what started the process in every request, unless it is told not to. Its
    # variable for that is read on import, which was long ago.
    before, constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_TELEMETRY, True
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises errors of several libraries
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(
            f"{hub_id} is no folder here, and could not be had from the hub: {cause}. "
            "Check the name and the network, or download it elsewhere and name the folder"
        ) from error
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before


def _supported_class(name: str, index: Mapping[str, Any], component: str, family: Family) -> str:
    """The class of a component. It comes from the family's table: a checkpoint must not choose what is imported."""
    supported = family.COMPONENTS[component]
    entry = index.get(component)
    for known in supported:
        if entry == known.split("."):
            return known
    raise ExportError(f"the {component} of {name} is {entry!r}; supported: {', '.join(supported)}")


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


def _refuse_other_weights(component: str, name: str, found: Mapping[str, Any]) -> None:
    """Refuses what the libraries load with a warning and random numbers; what a class ignores they left out."""
    for kind, meaning in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has besides those of its class"),
        ("mismatched_keys", "has in other shapes than its configuration says"),
    ):
        keys = sorted(entry if isinstance(entry, str) else entry[0] for entry in found[kind])
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ExportError(
                f"{component} of {name} {meaning} {len(keys)} weights: {', '.join(keys[:3])}{more}. "
                "Get the checkpoint again, whole"
            )


def _refuse_pickles(root: Path, family: Family) -> None:
    for component in family.COMPONENTS:
        pickles = sorted(path.name for path in (root / component).rglob("*") if path.suffix in _PICKLES)
        if pickles:
            raise ExportError(
                f"{component} holds {', '.join(pickles)}, pickled weights, which can run code when they are opened. "
                "Only safetensors are read: save the checkpoint anew with safe_serialization=True, or remove the "
                "file if the same weights are there as safetensors"
            )


def _stored_dtype(folder: Path) -> torch.dtype:
    """The narrowest type that holds all of a component's weights without loss.

    Raises:
        ExportError: there are no safetensors, or they are damaged, or of a type that is not read.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ExportError(f"{folder.name} has no .safetensors file. Get the checkpoint again, whole")
    stored: set[str] = set()
    for path in files:
        try:
            with safe_open(path, "pt") as weights:
                stored |= {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ExportError(f"{folder.name}/{path.name} is damaged: {error}. Get the checkpoint again") from error
    if unread := sorted(stored - set(_DTYPES)):
        raise ExportError(
            f"{folder.name} has weights in {', '.join(unread)}; supported: {', '.join(_DTYPES)}. "
            "Get the checkpoint as its authors published it, not quantized"
        )
    return _DTYPES[stored.pop()] if len(stored) == 1 else torch.float32


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
