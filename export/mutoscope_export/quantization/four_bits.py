"""Which layers of a network go on from eight bits to four: those that cost its output least, by measurement.

Knows how to measure and to choose. Knows nothing of graphs or of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..families.policy import QuantizationPolicy, QuantizedLayers
from ..graphs.nvfp4 import BLOCK
from .calibration import Ranges
from .quality import Cost, details

_SHARES = (0, 0.25, 0.5, 0.75, 1)  # that the report shows


@dataclass(frozen=True)
class Choice:
    """The layers with those in four bits, and what goes into the export report."""

    layers: QuantizedLayers
    report: dict[str, Any]


def choose_four_bits(network: nn.Module, policy: QuantizationPolicy, layers: QuantizedLayers, ranges: Ranges) -> Choice:
    """As many layers in NVFP4 as leave the error of the network below `four_bits_error` times that of eight bits.

    They are taken in the order of what each alone costs the network's output, for each of its weights. That costs a run
    of the network for each layer, on the inputs recorded in the middle; how many are taken is then measured on all.

    Args:
        layers: in eight bits; those whose input 16 does not divide stay so.
    """
    assert policy.four_bits_error is not None
    order = _by_cost(network, policy, layers, ranges)
    cost = Cost(network, policy.number_format, ranges, ranges.recordings)
    errors: dict[int, float] = {}

    def error(count: int) -> float:
        if count not in errors:
            errors[count] = cost.of(_with_first(layers, order, count))
        return errors[count]

    allowed = policy.four_bits_error * error(0)
    chosen, beyond = 0, len(order) + 1
    while beyond - chosen > 1:
        middle = (chosen + beyond) // 2
        chosen, beyond = (middle, beyond) if error(middle) <= allowed else (chosen, middle)
    shown = {round(share * len(order)) for share in _SHARES} | {chosen}
    steps = [
        {
            "step": f"{count / max(1, len(order)):.0%} of the layers in four bits",
            "linears": len(layers.linears) - count,
            "four_bits": count,
            "attentions": len(layers.attentions),
            "relative_l2": error(count),
        }
        for count in sorted(shown)
    ]
    taken = _with_first(layers, order, chosen)
    (policy_step,) = (step["step"] for step in steps if step["four_bits"] == chosen)
    report = {"policy": policy_step, "four_bits": taken.four_bits, "steps": steps, **details(cost, taken)}
    return Choice(taken, report)


def _by_cost(network: nn.Module, policy: QuantizationPolicy, layers: QuantizedLayers, ranges: Ranges) -> Sequence[str]:
    middle = ranges.recordings[len(ranges.recordings) // 2]
    alone = Cost(network, policy.number_format, ranges, [middle])
    sizes = {name: network.get_parameter(f"{name}.weight") for name in layers.linears}
    costs = {
        name: alone.of(QuantizedLayers((name,), (), (name,))) ** 2 / weight.numel()
        for name, weight in sizes.items()
        if weight.shape[1] % BLOCK == 0
    }
    return sorted(costs, key=lambda name: costs[name])


def _with_first(layers: QuantizedLayers, order: Sequence[str], count: int) -> QuantizedLayers:
    """In the network's order."""
    first = set(order[:count])
    return replace(layers, four_bits=tuple(name for name in layers.linears if name in first))
