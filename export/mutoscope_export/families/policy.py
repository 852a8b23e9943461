"""Which layers of a network run in eight bits, as data, in steps from what costs least to what costs most.

Knows names of layers. Knows no network and no graph; each family has its own policy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..graphs.number_formats import NumberFormat


@dataclass(frozen=True)
class QuantizationStep:
    """What one step adds. Regular expressions for the whole name of a layer inside its block; none adds nothing."""

    name: str
    linears: str | None = None
    attentions: str | None = None  # whose two products are meant, not its projections; E4M3 alone has a form of them


@dataclass(frozen=True)
class QuantizedLayers:
    """By their names in the network, in its order. `four_bits` are those of `linears` that are in NVFP4."""

    linears: tuple[str, ...]
    attentions: tuple[str, ...]
    four_bits: tuple[str, ...] = ()

    @property
    def eight_bits(self) -> tuple[str, ...]:
        """The other linear layers."""
        return tuple(name for name in self.linears if name not in set(self.four_bits))


@dataclass(frozen=True)
class QuantizationPolicy:
    """What no step adds keeps its precision: embedders, modulation, norms, final projection, and blocks at the ends.

    `block` is a regular expression for a layer's name, with the block's number and the rest as its groups. Blocks whose
    names are the same before the number are a row. Of n blocks in a row, n times `kept_at_each_end`, and at least one,
    are kept at each end. `weight` and `values_weight` make of a layer's name that of its weight in the graph: of a
    linear layer, and of that which projects the values of an attention.

    Where `four_bits_error` is given, linear layers go on from eight bits to NVFP4: as many as leave the error of the
    network below so many times that of eight bits, as it is measured with each checkpoint.
    """

    number_format: NumberFormat
    block: str
    kept_at_each_end: float
    steps: tuple[QuantizationStep, ...]
    default: str  # the last step that an export takes
    weight: str
    values_weight: str
    four_bits_error: float | None = None

    def kept(self, blocks: int) -> int:
        """How many of so many blocks keep their precision at each end."""
        return max(1, round(blocks * self.kept_at_each_end))

    @property
    def step_names(self) -> tuple[str, ...]:
        """In the order in which the steps are taken."""
        return tuple(step.name for step in self.steps)

    def layers(self, names: Iterable[str], up_to: str) -> QuantizedLayers:
        """Those of a network's layers, `names`, that are quantized after the step `up_to` and all before it.

        Raises:
            ValueError: the step is unknown, or it quantizes nothing.
        """
        if up_to not in self.step_names:
            raise ValueError(f"there is no step {up_to!r}; the steps are: {', '.join(self.step_names)}")
        taken = self.steps[: self.step_names.index(up_to) + 1]
        parted = [
            (name, name[: match.start(1)], int(match[1]), match[2])
            for name in names
            if (match := re.fullmatch(self.block, name))
        ]
        counts: dict[str, int] = {}
        for _, row, number, _ in parted:
            counts[row] = max(counts.get(row, 0), number + 1)
        kept = {row: self.kept(count) for row, count in counts.items()}
        inner = [(name, rest) for name, row, number, rest in parted if kept[row] <= number < counts[row] - kept[row]]
        linears, attentions = (
            tuple(name for name, rest in inner if any(one and re.fullmatch(one, rest) for one in patterns))
            for patterns in ([step.linears for step in taken], [step.attentions for step in taken])
        )
        if not linears and not attentions:
            count = max(counts.values(), default=0)
            raise ValueError(
                f"of {count} blocks, {self.kept(count)} at each end keep their precision, and no layer is left to "
                "quantize; a network as shallow as this has nothing to gain from it"
            )
        return QuantizedLayers(linears, attentions)
