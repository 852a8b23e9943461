"""From files of LoRAs to the inputs of the denoisers that they change.

Knows files, and which inputs a manifest says that there are. Knows nothing of the other inputs, or of steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import frexp
from pathlib import Path
from typing import Any

import numpy as np
from mutoscope_engines.errors import GraphError
from mutoscope_engines.lora_file import Difference, LoraFile, LowRank, read_lora
from mutoscope_engines.session import Host
from mutoscope_engines.system.file_hash import known_sha256
from numpy.typing import NDArray

from ..bundle.contract import LORA_A, LORA_B, LORA_RANK
from ..bundle.interface import fed_by_loras
from ..bundle.manifest import MAX_LORA_RANK, LoraForm, Manifest
from ..errors import RequestError
from ..request import LORAS, VideoRequest
from ..values import checks
from ..values.loras import LORA, Lora

MOST_STRENGTH = 1000
MERGE = "export the checkpoint again with this file as lora: mutoscope export CHECKPOINT BUNDLE"


@dataclass(frozen=True)
class PlannedLora:
    """A LoRA that changes a denoiser for this video."""

    role: str  # the denoiser
    file: str  # its name, without folders
    sha256: str
    strength: float
    rank: int  # the largest of its changes


@dataclass(frozen=True)
class _Read:
    """A LoRA whose every tensor has an input."""

    file: LoraFile
    changes: tuple[LowRank, ...]
    strength: float

    def rank_of(self, change: LowRank) -> int:
        return self.file.file.tensors[change.down].shape[0]


@dataclass(frozen=True, eq=False)
class SettledLoras:
    """The LoRAs of a video. Their files are open, and of them only the headers were read.

    Attributes:
        plan: one after the other, in the order in which they were given.
        rank: R, of all that change one weight together; 0 where there are none.
    """

    plan: tuple[PlannedLora, ...] = ()
    rank: int = 0
    _read: Mapping[str, tuple[_Read, ...]] = field(default_factory=dict)
    _inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def lengths(self) -> dict[str, int]:
        """The symbol of the rank in the shapes of graphs, and its size."""
        return {LORA_RANK: self.rank} if self.plan else {}

    def feeds(self, role: str) -> dict[str, Host]:
        """The inputs of a denoiser by name: A `[in, R]` and B `[R, out]` of each weight, with zeros for what no LoRA
        changes; B times strength and scale. None where no LoRA changes this denoiser.

        Raises:
            RequestError: a file has NaN or infinity, or values that the type of the inputs cannot hold, or was changed
                since.
        """
        changes = _by_parameter(self._read.get(role, ()))
        inputs, feeds = self._inputs.get(role, {}), dict[str, Host]()
        for name in (name.removesuffix(LORA_A) for name in inputs if name.endswith(LORA_A)):
            a, b = (inputs[name + suffix] for suffix in (LORA_A, LORA_B))
            left = np.zeros((a.shape[0], self.rank), a.dtype)
            right = np.zeros((self.rank, b.shape[1]), b.dtype)
            begin = 0
            for lora, change in changes.get(name, ()):
                down, up = _factors(lora, change, a.dtype)
                end = begin + len(down)
                left[:, begin:end], right[begin:end] = down.T, up.T
                begin = end
            feeds |= {a.name: left, b.name: right}
        return feeds


def settle_loras(request: VideoRequest, manifest: Manifest, precision: str) -> SettledLoras:
    """Which files change which denoiser.

    Raises:
        RequestError: a file cannot be read, or not all of it fits; says how much does, and why the others do not.
    """
    experts = [expert.role for expert in manifest.experts]
    plan, read, inputs = list[PlannedLora](), dict[str, tuple[_Read, ...]](), dict[str, Mapping[str, Any]]()
    for name, role in zip(LORAS, [*experts, None], strict=False):
        given = _checked(name, getattr(request, name))
        if not given:
            continue
        if role is None:
            raise RequestError(f"this model has one denoiser, and {name} is for a second; leave it out")
        form = manifest.lora_form(role, precision)
        if form is None:
            raise RequestError(_without_inputs(manifest, precision))
        inputs[role] = fed_by_loras(form, manifest.graphs_of(role, precision, with_loras=True))
        read[role] = tuple(_read(lora, form, inputs[role], precision) for lora in given)
        plan += [_planned(role, each) for each in read[role]]
    rank = max((sum(lora.rank_of(change) for lora, change in each) for role in read for each in
                _by_parameter(read[role]).values()), default=0)  # fmt: skip
    if rank > MAX_LORA_RANK:
        raise RequestError(
            f"the LoRAs have a rank of {rank} together, and at most {MAX_LORA_RANK} is allowed. Give fewer, or merge "
            f"those that stay the same: {MERGE}"
        )
    return SettledLoras(tuple(plan), rank, read, inputs)


def notes_on_loras(loras: SettledLoras, calls: Mapping[str, int]) -> Iterator[str]:
    """Which LoRAs do nothing, because no step is their denoiser's; for a person.

    Args:
        calls: how often each denoiser is called.
    """
    for role in dict.fromkeys(lora.role for lora in loras.plan):
        if not calls.get(role):
            yield f"the LoRAs of the {role} change nothing: all steps of this video are another denoiser's"


def _checked(name: str, given: Any) -> Sequence[Lora]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(each, Lora) for each in given):
        raise RequestError(LORA.refusal(name, given))
    for lora in given:
        checks.real(
            f"the strength of {Path(lora.path).name}", lora.strength, minimum=-MOST_STRENGTH, maximum=MOST_STRENGTH
        )
    return given


def _without_inputs(manifest: Manifest, precision: str) -> str:
    others = dict.fromkeys(graph.precision for form in manifest.lora_forms for graph in form.graphs)
    instead = f"choose the precision {' or '.join(others)}, or export" if others else "export"
    return (
        f"this bundle takes no LoRAs in {precision}; {instead} the checkpoint again in {precision} with lora_inputs: "
        "mutoscope export CHECKPOINT BUNDLE"
    )


def _read(lora: Lora, form: LoraForm, inputs: Mapping[str, Any], precision: str) -> _Read:
    shapes = {name: parameter.shape for name, parameter in form.parameters.items()}
    names = {name: parameter.original for name, parameter in form.parameters.items()}
    try:
        file = read_lora(Path(lora.path), shapes, names)
    except GraphError as error:
        raise RequestError(str(error)) from error
    except OSError as error:
        name = Path(lora.path).name  # the folder may be another's business, such as that of a server's client
        raise RequestError(f"{name} cannot be read: {error.strerror}; name the file of a LoRA") from error
    except ValueError as error:  # a zero byte
        raise RequestError(f"{lora.path!r} is not a path: {error}; name the file of a LoRA") from error
    changes = tuple(each for each in file.changes if isinstance(each, LowRank))
    differences = [each.name for each in file.changes if isinstance(each, Difference)]
    elsewhere = [each.down for each in changes if f"{each.parameter}{LORA_A}" not in inputs]
    refused = ((differences, "change biases, norms, modulation or whole weights"),
               (elsewhere, f"change layers that LoRAs cannot change in {precision}"))  # fmt: skip
    if reasons := [f"{len(names)} {reason} ({min(names)})" for names, reason in refused if names]:
        raise RequestError(
            f"{Path(lora.path).name} cannot be added while the model runs: of its {len(file.changes)} changes "
            f"{'; '.join(reasons)}. Merge it: {MERGE}"
        )
    return _Read(file, changes, lora.strength)


def _planned(role: str, lora: _Read) -> PlannedLora:
    path = lora.file.file.path
    return PlannedLora(role, path.name, known_sha256(path), lora.strength, max(map(lora.rank_of, lora.changes)))


def _by_parameter(loras: Sequence[_Read]) -> dict[str, list[tuple[_Read, LowRank]]]:
    found: dict[str, list[tuple[_Read, LowRank]]] = {}
    for lora in loras:
        for change in lora.changes:
            found.setdefault(change.parameter, []).append((lora, change))
    return found


def _factors(lora: _Read, change: LowRank, dtype: str) -> list[NDArray[Any]]:
    """`[r, in]` and `[out, r]`, whose product is what is added. A power of two is moved between them, so that they have
    about the same magnitude, which loses nothing, and keeps small factors in float16 from becoming zero."""
    file = lora.file.file
    try:
        down, up = (file.floats(name).reshape(file.tensors[name].shape[0], -1) for name in (change.down, change.up))
    except (GraphError, OSError) as error:
        raise RequestError(f"{file.path.name} was changed since the video was planned; ask for it again") from error
    up = up * np.float32(lora.strength * change.scale)
    exponents = [frexp(float(np.abs(factor).max(initial=0.0)))[1] for factor in (down, up)]
    shift = (exponents[1] - exponents[0]) // 2 if up.any() else 0
    with np.errstate(over="ignore"):
        factors = [np.ldexp(factor, power).astype(dtype) for factor, power in ((down, shift), (up, -shift))]
    if not all(np.isfinite(factor).all() for factor in factors):
        raise RequestError(
            f"{file.path.name} changes {change.parameter} by NaN, infinity or more than {dtype} holds. Get it again, "
            "or give it less strength"
        )
    return factors
