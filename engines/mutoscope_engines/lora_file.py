"""What a LoRA file changes in a network: which tensors of the file belong to which parameter, and by which factor.

Reads names, shapes and notes, in every spelling that trainers write. Everything in a file fits the network, or the file
is refused. Knows no model line and computes nothing: what a network's parameters are called is given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan, prod, sqrt
from pathlib import Path
from typing import Any

from .errors import GraphError
from .safetensors_file import FLOATS, SafetensorsFile

Shapes = Mapping[str, tuple[int, ...]]

_PREFIXES = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "pipe.dit.", "lora_unet_",
)  # fmt: skip
_HALF = re.compile(r"(.+)\.lora(_A|_B|_down|_up|\.down|\.up)(?:\.(?!weight$|bias$)\w+)?\.(weight|bias)")
_OTHER = re.compile(r"(.+)\.(alpha|diff|diff_b|diff_m)")
_PARTS = {"_A": "down", "_down": "down", ".down": "down", "_B": "up", "_up": "up", ".up": "up"}
_OTHER_METHODS = re.compile(r"dora_scale|lora_magnitude_vector|lokr_|hada_|lora_mid|oft_|\.diag\b|reshape_weight")
_OF_IMAGES = re.compile(r"k_img|v_img|img_emb|add_[kv]_proj|image_embedder|norm_added")
_OF_TEXT = re.compile(r"(lora_te\d?_|text_encoders?\.|te_)")
_OF_SECOND = "transformer_2."
_OTHER_SIZES = "have other sizes than the network"
_PATTERN = re.compile(r"[\w.*^$|\\+-]{1,200}")  # of PEFT's regular expressions, those that are quick on any name
_MOST_REPETITIONS = 2  # in one of them; each more takes a long name as many times longer as it has characters
_NOTED, _BESIDE = "lora_adapter_metadata", "adapter_config.json"  # where PEFT's configuration is


@dataclass(frozen=True)
class LowRank:
    """Adds `strength * scale * (up @ down)` to a parameter, both as matrices: `[out, rank]` and `[rank, in]`."""

    parameter: str
    down: str  # names in the file
    up: str
    scale: float


@dataclass(frozen=True)
class Difference:
    """Adds `strength * scale * name` to a parameter."""

    parameter: str
    name: str
    scale: float = 1.0


@dataclass(frozen=True)
class LoraFile:
    """A file of which everything fits a network."""

    file: SafetensorsFile
    changes: tuple[LowRank | Difference, ...]


def read_lora(path: Path, parameters: Shapes, original_names: Mapping[str, str]) -> LoraFile:
    """Finds what each tensor of a file changes.

    Args:
        parameters: the shapes of the network's parameters by name.
        original_names: the same names, to what the authors of the model call them.

    Raises:
        GraphError: it is damaged, or something in it does not fit; says how much, and why.
        OSError: it cannot be opened.
    """
    return _Reader(SafetensorsFile(path), parameters, original_names).read()


@dataclass(frozen=True)
class LoraSummary:
    """What a file holds, as far as its names say without a network to compare with.

    Attributes:
        layers: that have both factors.
        differences: parameters of which it has the difference itself.
        others: tensors of other methods, or of no known kind.
        ranks: of the factors, each once.
        blocks: one more than the highest number of a block.
        types: of the tensors, each once.
    """

    layers: int
    differences: int
    others: int
    ranks: tuple[int, ...]
    blocks: int
    types: tuple[str, ...]


def summary_of(file: SafetensorsFile) -> LoraSummary:
    """Counts what a file holds, whether or not it is of any use."""
    downs, ups, differences, others = dict[str, int](), set[str](), 0, 0
    for name, tensor in file.tensors.items():
        half, other = _HALF.fullmatch(name), _OTHER.fullmatch(name)
        if _OTHER_METHODS.search(name) or not (half or other):
            others += 1
        elif half and half[3] == "weight" and _PARTS[half[2]] == "down":
            downs[half[1]] = tensor.shape[0] if tensor.shape else 0
        elif half and half[3] == "weight":
            ups.add(half[1])
        else:
            differences += half is not None or (other is not None and other[2] != "alpha")
    blocks = {int(found[1]) for name in file.tensors if (found := re.search(r"blocks[._](\d{1,4})[._]", name))}
    return LoraSummary(
        layers=len(downs.keys() & ups),
        differences=differences,
        others=others,
        ranks=tuple(sorted(set(downs.values()))),
        blocks=max(blocks, default=-1) + 1,
        types=tuple(sorted({tensor.dtype for tensor in file.tensors.values()})),
    )


class _Reader:
    def __init__(self, file: SafetensorsFile, parameters: Shapes, original_names: Mapping[str, str]) -> None:
        self._file, self._parameters = file, parameters
        self._known = {
            _flat(each): name.removesuffix(".weight").removesuffix(".bias")
            for name, original in original_names.items()
            for alias in (name, original)
            for each in (alias, alias.removesuffix(".weight").removesuffix(".bias"))
        }
        self._known |= {
            _flat(original.removesuffix(".modulation")) + "_diff_m": name
            for name, original in original_names.items()
            if original.endswith(".modulation")
        }
        self._refused: dict[str, list[str]] = {}  # names by reason
        self._modules: dict[str, dict[str, str]] = {}  # by what the file calls them: tensors by what they are for

    def read(self) -> LoraFile:
        for name, tensor in self._file.tensors.items():
            if tensor.dtype not in FLOATS:
                self._refuse(f"have the type {tensor.dtype} and not one of {', '.join(FLOATS)}", name)
            elif _OTHER_METHODS.search(name):
                self._refuse("are of another method than LoRA, such as DoRA, LoKr or LoHa", name)
            else:
                self._sort(name)
        configured = _configuration(self._file)
        changes = [change for stem in self._modules for change in self._of(stem, configured)]
        self._refuse_repetition(changes)
        if self._refused or not changes:
            raise GraphError(self._refusal())
        return LoraFile(self._file, tuple(changes))

    def _sort(self, name: str) -> None:
        """Puts a tensor to its module."""
        half, other = _HALF.fullmatch(name), _OTHER.fullmatch(name)
        if half:
            stem, part = half[1], _PARTS[half[2]] + ("" if half[3] == "weight" else " bias")
        elif other:
            stem, part = other.groups()
        else:
            return self._refuse("are of no known kind", name)
        if self._modules.setdefault(stem, {}).setdefault(part, name) != name:
            self._refuse("are a second LoRA in the same file", name)

    def _of(self, stem: str, configured: _Configuration) -> Iterator[LowRank | Difference]:
        """What changes a module, with what does not fit put aside."""
        parts = dict(self._modules[stem])
        if name := parts.pop("diff_m", None):  # of a parameter beside the modules of a block
            parameter = self._known.get(_flat(_bare(stem)).removesuffix("_modulation") + "_diff_m", "")
            yield from self._difference(stem, parameter, name)
        if not parts:
            return None
        module = self._known.get(_flat(_bare(stem)))
        if module is None:
            return self._refuse(self._why_unknown(stem), *parts.values())
        scale = 1.0
        if "down" in parts and "up" in parts:
            down, up, alpha = parts.pop("down"), parts.pop("up"), parts.pop("alpha", None)
            parameter = self._parameter(module)
            if self._fits(down, up, parameter):
                scale = self._scale(alpha, stem, module, self._file.tensors[down].shape[0], configured)
                yield LowRank(parameter, down, up, scale)
            else:
                self._refuse(_OTHER_SIZES, down, up, *([alpha] if alpha else []))
            if name := parts.pop("up bias", None):
                yield from self._difference(stem, f"{module}.bias", name, scale)
        if name := parts.pop("diff", None):
            yield from self._difference(stem, self._parameter(module), name)
        if name := parts.pop("diff_b", None):
            yield from self._difference(stem, f"{module}.bias", name)
        if parts:
            self._refuse("lack their other half", *parts.values())

    def _difference(self, stem: str, parameter: str, name: str, scale: float = 1.0) -> Iterator[Difference]:
        shape = self._parameters.get(parameter)
        if shape == self._file.tensors[name].shape:
            yield Difference(parameter, name, scale)
        else:
            self._refuse(self._why_unknown(stem) if shape is None else _OTHER_SIZES, name)

    def _parameter(self, module: str) -> str:
        """The weight of a module; a parameter beside the modules is one itself."""
        return module if module in self._parameters else f"{module}.weight"

    def _fits(self, down: str, up: str, parameter: str) -> bool:
        """As matrices. The kernel of a convolution is in the lower half."""
        lower, upper = self._file.tensors[down].shape, self._file.tensors[up].shape
        shape = self._parameters.get(parameter, ())
        matrices = min(len(lower), len(upper), len(shape)) >= 2
        return (
            matrices
            and lower[0] == upper[1] > 0
            and upper[0] == shape[0]
            and prod(upper[2:]) == 1
            and prod(lower[1:]) == prod(shape[1:])
            and (len(lower) == 2 or lower[1:] == shape[1:])
        )

    def _scale(self, alpha: str | None, stem: str, module: str, rank: int, configured: _Configuration) -> float:
        if alpha is None:
            return configured.scale((_bare(stem), module), rank)
        value = float(self._file.floats(alpha).ravel()[0]) if prod(self._file.tensors[alpha].shape) == 1 else nan
        if not isfinite(value):
            self._refuse("are not a finite number", alpha)
        return value / rank

    def _why_unknown(self, stem: str) -> str:
        if stem.startswith(_OF_SECOND):
            return "are for the second transformer; give it these in a file of their own"
        if _OF_TEXT.match(stem):
            return "are for a text encoder, which no LoRA changes here"
        if _OF_IMAGES.search(stem):
            return "are for layers that read a picture, which this network lacks"
        blocks = {int(found[1]) for name in self._parameters if (found := re.search(r"\bblocks\.(\d{1,4})\.", name))}
        block = re.search(r"blocks[._](\d{1,4})[._]", stem)
        if block and blocks and int(block[1]) not in blocks:
            return f"are for blocks from {len(blocks)} on, and this network has {len(blocks)}"
        return "are for parameters that this network lacks"

    def _refuse(self, reason: str, *names: str) -> None:
        self._refused.setdefault(reason, []).extend(names)

    def _refuse_repetition(self, changes: Iterable[LowRank | Difference]) -> None:
        met = set()
        for change in changes:
            if (type(change), change.parameter) in met:
                self._refuse(f"say a second time what changes {change.parameter}", *_names_in_file(change))
            met.add((type(change), change.parameter))

    def _refusal(self) -> str:
        name, total = self._file.path.name, len(self._file.tensors)
        if not self._refused:
            return f"{name} changes nothing: it has no tensors. Name a LoRA"
        fewer = total - len({each for names in self._refused.values() for each in names})
        reasons = "; ".join(f"{len(names)} {reason} ({min(names)})" for reason, names in self._refused.items())
        return (
            f"{name} does not fit: {fewer} of its {total} tensors do, and of the others {reasons}. Nothing is used: "
            "a part of it would be another change than its author made. Get the file for this model and size"
        )


@dataclass(frozen=True)
class _Configuration:
    """What PEFT notes of the factors, where tensors do not."""

    alpha: float | None = None
    by_pattern: Mapping[str, float] = field(default_factory=dict)
    by_root_of_rank: bool = False  # "rslora"

    def scale(self, names: Sequence[str], rank: int) -> float:
        """As PEFT has it: a pattern is a name, or the end of one after a dot.

        Args:
            names: of a module, as the file has it and as the network has it.
        """
        matching = [
            alpha
            for pattern, alpha in self.by_pattern.items()
            if any(re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name) for name in names)
        ]
        alpha = matching[0] if matching else self.alpha
        return 1.0 if alpha is None else alpha / (sqrt(rank) if self.by_root_of_rank else rank)


def _configuration(file: SafetensorsFile) -> _Configuration:
    """From the notes in the file, or beside it where PEFT saved the file by itself.

    Raises:
        GraphError: it is damaged, missing, or of a kind of adapter that is not merged.
    """
    beside = file.path.parent / _BESIDE
    try:
        if _NOTED in file.metadata:
            said = json.loads(file.metadata[_NOTED])
            said = {key.removeprefix("transformer."): value for key, value in said.items()}
        elif not any(name.startswith("base_model.model.") for name in file.tensors):
            return _Configuration()
        elif beside.is_file():
            said = json.loads(beside.read_text("utf-8"))
        else:
            raise GraphError(
                f"{file.path.name} was saved by PEFT, and {_BESIDE}, which has its alpha, is not beside it"
            )
        if said.get("use_dora"):
            raise GraphError(
                f"{file.path.name} is a DoRA and not a LoRA; it cannot be merged. Merge it where it was made"
            )
        return _as_configuration(said)
    except (ValueError, TypeError, AttributeError, RecursionError, re.error) as error:
        raise GraphError(f"the configuration of {file.path.name} is damaged: {error}. Get it again") from error


def _as_configuration(said: Mapping[str, Any]) -> _Configuration:
    alpha = said.get("lora_alpha")
    patterns = {re.compile(each).pattern: float(value) for each, value in (said.get("alpha_pattern") or {}).items()}
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern) or sum(map(pattern.count, "*+")) > _MOST_REPETITIONS:
            raise ValueError(f"{pattern!r:.40} in alpha_pattern is more than a plain pattern of names")
    configured = _Configuration(None if alpha is None else float(alpha), patterns, bool(said.get("use_rslora")))
    if not all(map(isfinite, (configured.alpha or 0.0, *patterns.values()))):
        raise ValueError("an alpha is not finite")
    return configured


def _bare(stem: str) -> str:
    """Without the prefixes that trainers put before a module's name."""
    for prefix in _PREFIXES:
        stem = stem.removeprefix(prefix)
    return stem


def _flat(name: str) -> str:
    """As kohya writes it. Underscores cannot be told from dots again, so both sides are compared like this."""
    return name.replace(".", "_")


def _names_in_file(change: LowRank | Difference) -> tuple[str, ...]:
    return (change.down, change.up) if isinstance(change, LowRank) else (change.name,)
