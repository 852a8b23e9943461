"""What fewer bits cost a network, step by step of its policy and layer by layer, on inputs recorded in denoising runs.

Knows the arithmetic of the quantized graphs, and does it in torch on the checkpoint's own network: no graph is needed,
and a network of any size can be measured. Knows nothing of models, files or prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from mutoscope_engines.difference import relative, relative_l2
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..families.family import Recording
from ..families.policy import QuantizationPolicy, QuantizedLayers
from ..graphs.number_formats import E4M3, INT8, TINY, NumberFormat
from ..passes.fp8_attention import PROBABILITY_SCALE
from .calibration import Ranges
from .layer_watch import watch
from .nvfp4_numbers import fake_nvfp4, nvfp4_scale, nvfp4_weight

WORST = 5
_QUERIES_AT_ONCE = 256  # because their scores are the largest tensor by far


def measure(network: nn.Module, policy: QuantizationPolicy, ranges: Ranges, up_to: str) -> dict[str, Any]:
    """What goes into the export report: `steps`, `worst_layers` of `up_to`, and `unfit`, the layers that
    the format does not suit.

    `relative_l2` of a step is that of the network's output, over all recorded inputs and both branches; that of a layer
    is of what the layer gives, for what it reads after the layers before it were quantized.
    """
    names = [name for name, _ in network.named_modules()]
    cost = Cost(network, policy.number_format, ranges, ranges.recordings)
    steps = [
        {
            "step": step,
            "linears": len(layers.linears),
            "attentions": len(layers.attentions),
            "relative_l2": cost.of(layers),
        }
        for step in policy.step_names
        for layers in [policy.layers(names, step)]
    ]
    return {"steps": steps} | details(cost, policy.layers(names, up_to))


def details(cost: Cost, layers: QuantizedLayers) -> dict[str, Any]:
    """Of what is quantized: `worst_layers`, and `unfit`, those in eight bits."""
    by_error = sorted(cost.of_each(layers).items(), key=lambda item: -item[1])
    unfit = _unfit(cost.network, layers, cost.ranges, cost.number_format.outlier_bound)
    return {"worst_layers": dict(by_error[:WORST]), "unfit": list(unfit)}


class Cost:
    """The relative L2 errors of a network on recorded inputs, by which of its layers are quantized."""

    def __init__(
        self, network: nn.Module, number_format: NumberFormat, ranges: Ranges, recordings: Sequence[Recording]
    ) -> None:
        self.network, self.number_format, self.ranges = network, number_format, ranges
        self._calls = list(_calls(network, recordings))
        self._exact = self._run()
        self._each: dict[QuantizedLayers, dict[str, float]] = {}

    def _run(self) -> list[NDArray[Any]]:
        with torch.no_grad():
            return [self.network(**call, return_dict=False)[0].cpu().numpy() for call in self._calls]

    def of(self, layers: QuantizedLayers) -> float:
        """Of the network's output, over all inputs and both branches."""
        quantized = _FakeQuantization(self.ranges, self.number_format, layers.four_bits)
        with watch(self.network, layers, quantized.linear, quantized.attention):
            given = self._run()
        self._each[layers] = quantized.errors()
        return relative_l2(zip(given, self._exact, strict=True))

    def of_each(self, layers: QuantizedLayers) -> dict[str, float]:
        """Of what each layer gives, for what it reads after the layers before it were quantized."""
        if layers not in self._each:
            self.of(layers)
        return self._each[layers]


def _calls(network: nn.Module, recordings: Sequence[Recording]) -> Iterator[dict[str, Tensor]]:
    """The calls of the recorded steps, where the network is."""
    device = next(network.parameters()).device
    for recording in recordings:
        for call in recording.calls:
            yield {name: value.to(device) for name, value in call.items()}


class _FakeQuantization:
    """Does what layers do with operands that went through a number format, and keeps count of what that changes."""

    def __init__(self, ranges: Ranges, number_format: NumberFormat, four_bits: Collection[str]) -> None:
        self._ranges, self._format, self._four_bits = ranges, number_format, frozenset(four_bits)
        self._squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def linear(self, name: str, layer: nn.Linear, x: Tensor, output: Tensor) -> Tensor:
        spread = self._ranges.linears[name]
        if name in self._four_bits:
            x, weight = fake_nvfp4(x, nvfp4_scale(spread)), nvfp4_weight(layer.weight)
        else:
            x, weight = (
                fake_quantized(x, spread.scale(self._format), self._format),
                quantized_weight(layer.weight, self._format),
            )
        quantized = F.linear(x, weight, layer.bias)
        self._count(name, quantized, output)
        return quantized

    def attention(self, name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        half = queries.shape[-1] ** -0.25  # half of the softmax scale on either side
        scales = [activation.scale(E4M3) for activation in self._ranges.attentions[name]]
        q = fake_quantized(queries * half, scales[0] * half, E4M3)
        k = fake_quantized(keys * half, scales[1] * half, E4M3)
        v = fake_quantized(values, scales[2], E4M3)
        parts = [
            fake_quantized((part @ k.mT).softmax(-1), PROBABILITY_SCALE, E4M3) @ v
            for part in q.split(_QUERIES_AT_ONCE, dim=2)
        ]
        quantized = torch.cat(parts, dim=2)
        self._count(name, quantized, F.scaled_dot_product_attention(queries, keys, values))
        return quantized

    def _count(self, name: str, quantized: Tensor, exact: Tensor) -> None:
        squares = self._squares[name]  # summed where the network is: what layers give is large
        squares[0] += float((quantized - exact).square().sum())
        squares[1] += float(exact.square().sum())

    def errors(self) -> dict[str, float]:
        return {name: relative(*squares) for name, squares in self._squares.items()}


_NEAREST: Mapping[NumberFormat, Callable[[Tensor], Tensor]] = {
    E4M3: lambda x: x.to(torch.float8_e4m3fn).to(x.dtype),
    INT8: torch.round,
}


def fake_quantized(x: Tensor, scale: float | Tensor, number_format: NumberFormat) -> Tensor:
    """Float32 to a format and back, as QuantizeLinear and DequantizeLinear do it: beyond the largest, that."""
    largest = number_format.largest
    return _NEAREST[number_format]((x / scale).clamp(-largest, largest)) * scale


def quantized_weight(weight: Tensor, number_format: NumberFormat) -> Tensor:
    """`[out, in]`, a scale for each output channel."""
    scales = weight.abs().amax(1, keepdim=True) / number_format.largest
    return fake_quantized(weight, torch.where(scales == 0, 1.0, scales), number_format)


def _unfit(network: nn.Module, layers: QuantizedLayers, ranges: Ranges, bound: float) -> Iterator[dict[str, Any]]:
    """One magnitude so large beside the others that these lose bits: of a weight, in the worst of its channels."""
    for name, what, ratio in _outliers(network, layers, ranges):
        if not ratio <= bound:
            yield {"layer": name, "what": what, "largest_over_mean": ratio, "bound": bound}


def _outliers(network: nn.Module, layers: QuantizedLayers, ranges: Ranges) -> Iterator[tuple[str, str, float]]:
    for name in layers.eight_bits:
        magnitudes = network.get_parameter(f"{name}.weight").abs()
        yield name, "weight", float((magnitudes.amax(1) / magnitudes.mean(1).clamp_min(TINY)).max())
        yield name, "activation", ranges.linears[name].largest / max(ranges.linears[name].mean, TINY)
    for name in layers.attentions:
        for part, activation in zip(("queries", "keys", "values"), ranges.attentions[name], strict=True):
            yield name, part, activation.largest / max(activation.mean, TINY)
