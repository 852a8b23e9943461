"""The weight files of a component: which of them are read, and whether they hold what its class needs.

Knows the names and headers of safetensors files. Reads no weight, and knows nothing of what a class does with them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import ExportError

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

# By the library of the class: the name that weights have without suffix, and whether an index is looked for first.
_NAMES = {"diffusers": ("diffusion_pytorch_model", True), "transformers": ("model", False)}
_OF_CLIP = "vision_model"  # what names of its vision model began with until transformers 5
_COMPILED = "_orig_mod."
_ORIGINS = {
    _COMPILED: "as torch.compile names them",
    "module.": "as DistributedDataParallel names them",
    "model.diffusion_model.": "as single-file checkpoints name them",
}
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class StoredWeights:
    """What the headers of a component's weight files say."""

    files: tuple[Path, ...]  # what its library reads: an index where there is one, and the weights
    shapes: Mapping[str, tuple[int, ...]]  # by name
    types: frozenset[str]  # as safetensors names them

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest type that holds all of the weights without loss."""
        return DTYPES[next(iter(self.types))] if len(self.types) == 1 else torch.float32


def names_of_weights(folder: Path, library: str) -> list[str]:
    """The weight files that `library` may read of a component whose index, if it has one, is in the folder.

    Raises:
        ExportError: the index is damaged.
    """
    stem, _ = _NAMES[library]
    index = folder / f"{stem}.safetensors.index.json"
    return [f"{stem}.safetensors", *(_shards(folder, index) if index.is_file() else ())]


def read_headers(folder: Path, library: str) -> StoredWeights:
    """Finds the files that `library` reads of a component, and reads their headers.

    Raises:
        ExportError: a file is missing or damaged, or has weights in a type that is not read.
    """
    files = _files(folder, library)
    shapes: dict[str, tuple[int, ...]] = {}
    types = set()
    for path in files:
        refuse_pointer(path)
        if path.suffix != ".safetensors":
            continue
        try:
            with safe_open(path, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118
                    header = weights.get_slice(name)
                    shapes[name] = tuple(header.get_shape())
                    types.add(header.get_dtype())
        except SafetensorError as error:
            raise ExportError(f"{folder.name}/{path.name} is damaged: {error}. Get the checkpoint again") from error
    _refuse_types(folder.name, types)
    return StoredWeights(tuple(files), shapes, frozenset(types))


def listed_files(folder: Path, index: Path) -> list[Path]:
    """The weight files that an index in the folder lists.

    Raises:
        ExportError: the index is damaged, or a file is missing.
    """
    names = _shards(folder, index)
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        refuse_link_to_nothing(*(folder / name for name in absent))
        raise ExportError(
            f"{folder.name} lacks {', '.join(absent)}, which {index.name} lists. Get the complete checkpoint again"
        )
    return [folder / name for name in names]


def refuse_other_weights(component: str, model: torch.nn.Module, stored: StoredWeights) -> None:
    """Compares names and shapes both ways with a module on the meta device, which libraries do with warnings.

    Raises:
        ExportError: the files do not hold exactly the weights of the class.
    """
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    given = _without_base_prefix(model, stored.shapes, expected)
    _refuse_prefix(component, model, given, expected)
    refuse_differences(
        component,
        type(model).__name__,
        missing=_missing(model, expected, given),
        unexpected=[name for name in given if name not in expected and not _ignored(model, name)],
        mismatched=[name for name, shape in expected.items() if given.get(name, shape) != shape],
    )


def refuse_differences(
    component: str, class_name: str, *, missing: Sequence[str], unexpected: Sequence[str], mismatched: Sequence[str]
) -> None:
    """Says which weights are missing, or more than the class has, or of another shape.

    Raises:
        ExportError: there is such a weight.
    """
    if missing and unexpected:
        raise ExportError(
            f"{component} does not have the weights of {class_name}: it lacks {_named(missing)}, and has "
            f"{_named(unexpected)} instead. It is of another class, or in another layout. Get the checkpoint in the "
            "Diffusers layout"
        )
    if missing:
        raise ExportError(f"{component} lacks {_named(missing)}. Get the complete checkpoint again")
    if unexpected:
        reason = (
            "They are the gates of FastVideo's sparse attention, which is not supported: full attention would give "
            "other videos"
            if all("to_gate_compress" in name for name in unexpected)
            else "A video without them would be another one. Get the checkpoint that was made for this class"
        )
        raise ExportError(
            f"{component} has weights that its class, {class_name}, does not use: {_named(unexpected)}. {reason}"
        )
    if mismatched:
        raise ExportError(
            f"{component} has {_named(mismatched)} in shapes that differ from its config.json. "
            "Get both from the same checkpoint"
        )


def refuse_not_finite(component: str, model: torch.nn.Module) -> None:
    """Reads every weight once.

    Raises:
        ExportError: a weight holds NaN or infinity; says which.
    """
    wrong = [
        name
        for name, weight in chain(model.named_parameters(), model.named_buffers())
        if weight.is_floating_point() and weight.numel() and not torch.stack(torch.aminmax(weight)).isfinite().all()
    ]
    if wrong:
        raise ExportError(
            f"{component} holds NaN or infinity in {_named(wrong)}: it was damaged, or its training diverged. "
            "Get the checkpoint again, or an earlier one"
        )


def refuse_pointer(path: Path) -> None:
    """
    Raises:
        ExportError: Git LFS has put a pointer in the place of the file, or it is a link to nothing.
    """
    refuse_link_to_nothing(path)
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ExportError(
                f"{path.parent.name}/{path.name} is a Git LFS pointer and not the file itself. "
                "Run `git lfs pull` in the checkpoint's folder"
            )


def refuse_link_to_nothing(*paths: Path) -> None:
    """
    Raises:
        ExportError: one of them is a link, and what it leads to is gone, such as from the cache of the hub's client.
    """
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise ExportError(f"{path.parent.name}/{path.name} is a broken link; download the file again")


def is_hidden(path: Path, root: Path) -> bool:
    """Whether it, or a folder on the way from `root`, begins with a dot, as what macOS leaves beside files."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _files(folder: Path, library: str) -> list[Path]:
    """What the library reads, the way it looks for it."""
    stem, index_first = _NAMES[library]
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file() and not (index_first and index.is_file()):
        return [single]
    if not index.is_file():
        refuse_link_to_nothing(single, index)
        raise ExportError(_without_weights(folder, single.name))
    refuse_pointer(index)
    return [index, *listed_files(folder, index)]


def _shards(folder: Path, index: Path) -> list[str]:
    try:
        names = sorted(set(map(os.fspath, json.loads(index.read_text("utf-8"))["weight_map"].values())))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ExportError(
            f"{folder.name}/{index.name} lists no weights: {error!r}. Get the checkpoint again"
        ) from error
    outside = [name for name in names if os.path.basename(name) != name or not name.endswith(".safetensors")]
    if outside or not names:
        raise ExportError(
            f"{folder.name}/{index.name} lists {', '.join(outside) or 'nothing'}; it must list .safetensors files "
            "in the same folder"
        )
    return names


def _without_weights(folder: Path, expected: str) -> str:
    others = sorted(path.name for path in folder.glob("*.safetensors") if not is_hidden(path, folder))
    if not others:
        return f"{folder.name} has no {expected}. Get the complete checkpoint again"
    variants = [re.search(r"\.(\w+)[-\d]*(?:of-\d+)?\.safetensors", name) for name in others]
    kinds = {found.group(1) for found in variants if found}
    if kinds:
        return (
            f"{folder.name} has its weights only as the variant {others[0]}, which export does not read. Load it with "
            f"Diffusers' variant={sorted(kinds)[0]!r} and save it again, or rename it to {expected} if it is one file"
        )
    if any(re.search(r"-\d{5}-of-\d{5}", name) for name in others):
        return (
            f"{folder.name} has its weights in several files, such as {others[0]}, and lacks {expected}.index.json, "
            "which lists them. Get the index again"
        )
    return (
        f"{folder.name} has no {expected}; export does not read {', '.join(others)}. Rename it if it has these weights"
    )


def _refuse_types(component: str, types: Iterable[str]) -> None:
    unread = sorted(set(types) - set(DTYPES))
    if not unread:
        return
    quantized = any(re.match(r"(F[48]|[IU](4|8)\b)", name) for name in unread)
    remedy = (
        "Get the checkpoint as its authors published it, not quantized"
        if quantized
        else "Save it again in one of these, such as with model.to(torch.float32)"
    )
    raise ExportError(f"{component} has weights in {', '.join(unread)}; supported: {', '.join(DTYPES)}. {remedy}")


def _missing(model: torch.nn.Module, expected: Iterable[str], given: Iterable[str]) -> list[str]:
    """Of weights that the class ties to each other, one is enough."""
    names: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
    tied = {name: group for group in names.values() for name in group}
    return [name for name in expected if not set(tied.get(name, [name])).intersection(given)]


def _ignored(model: torch.nn.Module, name: str) -> bool:
    """Whether the class itself says that a stored weight is none of its own."""
    patterns: Any = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _without_base_prefix(
    model: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, Any]
) -> Mapping[str, tuple[int, ...]]:
    """transformers takes the weights of a base model from those of a larger model around it."""
    for prefix in (getattr(model, "base_model_prefix", ""), _OF_CLIP):
        without = {name.removeprefix(f"{prefix}."): shape for name, shape in shapes.items()}
        if prefix and without.keys() & expected.keys():
            return without
    return shapes


def _refuse_prefix(component: str, model: torch.nn.Module, given: Iterable[str], expected: Iterable[str]) -> None:
    names = list(given)
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    prefix = "".join(f"{parts[0]}." for parts in takewhile(lambda parts: len(set(parts)) == 1, levels))
    if any(_COMPILED in name for name in names):  # torch.compile may have been given every block by itself
        prefix = _COMPILED
    elif not prefix or set(names) & set(expected):
        return
    origin = _ORIGINS.get(prefix, "which its class does not use")
    matches = {name.replace(prefix, "", 1) for name in names} & set(expected)
    remedy = (
        "Save it again with the names of its class"
        if matches
        else f"Load the file with {type(model).__name__}.from_single_file and save it again with save_pretrained"
    )
    raise ExportError(f"the weights of {component} have {prefix!r} in their names, {origin}. {remedy}")


def _named(names: Sequence[str]) -> str:
    first, more = ", ".join(sorted(names)[:3]), len(names) - 3
    return f"{len(names)} weight{'s' * (len(names) > 1)} ({first}{f' and {more} more' if more > 0 else ''})"
