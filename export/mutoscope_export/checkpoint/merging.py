"""Adds LoRAs to weights. Knows the arithmetic, and nothing of how files name what they change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mutoscope_engines.lora_file import Difference, LoraFile, LowRank
from torch import Tensor

from .given_weights import read_tensor
from .staging import Change


@dataclass(frozen=True)
class FittingLora:
    """A LoRA whose every tensor fits its network, and how much of it is added."""

    file: LoraFile
    strength: float


def merging(loras: Sequence[FittingLora]) -> Change:
    """What adds all of them, in their order, in float32."""
    changes: dict[str, list[tuple[FittingLora, LowRank | Difference]]] = defaultdict(list)
    for lora in loras:
        for change in lora.file.changes:
            changes[change.parameter].append((lora, change))

    def change_weight(name: str, weight: Tensor) -> Tensor:
        value = weight.float()
        for lora, change in changes.get(name, ()):
            value = _added(value, lora, change)
        return value

    return change_weight


def _added(value: Tensor, lora: FittingLora, change: LowRank | Difference) -> Tensor:
    factor, file = lora.strength * change.scale, lora.file.file
    if isinstance(change, Difference):
        return value.add(read_tensor(file, change.name).float(), alpha=factor)
    down, up = (read_tensor(file, name).float().flatten(1) for name in (change.down, change.up))
    return value.flatten(1).addmm(up, down, alpha=factor).reshape(value.shape)
