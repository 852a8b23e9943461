"""What eight bits cost a network, step by step of its policy and layer by layer, on inputs recorded in denoising runs.

Knows the arithmetic of the quantized graphs, and does it in torch on the checkpoint's own network: no graph is needed,
and a network of any size can be measured. Knows nothing of models, files or prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
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

WORST = 5
_QUERIES_AT_ONCE = 256  # because their scores are the largest tensor by far


def measure(network: nn.Module, policy: QuantizationPolicy, ranges: Ranges, up_to: str) -> dict[str, Any]:
    """What goes into the export report: `steps`, `worst_layers` of `up_to`, and `unfit`, the layers that
    the format does not suit.

    `relative_l2` of a step is that of the network's output, over all recorded inputs and both branches; that of a layer
    is of what the layer gives, for what it reads after the layers before it were quantized.
    """
    names = [name for name, _ in network.named_modules()]
    calls = list(_calls(network, ranges.recordings))
    steps, worst = [], {}
    with torch.no_grad():
        exact = [network(**call, return_dict=False)[0] for call in calls]
        for step in policy.step_names:
            layers = policy.layers(names, step)
            quantized = _FakeQuantization(ranges, policy.number_format)
            with watch(network, layers, quantized.linear, quantized.attention):
                given = [network(**call, return_dict=False)[0] for call in calls]
            steps.append(
                {
                    "step": step,
                    "linears": len(layers.linears),
                    "attentions": len(layers.attentions),
                    "relative_l2": relative_l2(zip(map(_array, given), map(_array, exact), strict=True)),
                }
            )
            if step == up_to:
                worst = quantized.errors()
        unfit = [*_unfit(network, policy.layers(names, up_to), ranges, policy.number_format.outlier_bound)]
    by_error = sorted(worst.items(), key=lambda item: -item[1])
    return {"steps": steps, "worst_layers": dict(by_error[:WORST]), "unfit": unfit}


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.cpu().numpy()


def _calls(network: nn.Module, recordings: Sequence[Recording]) -> Iterator[dict[str, Tensor]]:
    """The calls of the recorded steps, where the network is."""
    device = next(network.parameters()).device
    for recording in recordings:
        for call in recording.calls:
            yield {name: value.to(device) for name, value in call.items()}


class _FakeQuantization:
    """Does what layers do with operands that went through a number format, and keeps count of what that changes."""

    def __init__(self, ranges: Ranges, number_format: NumberFormat) -> None:
        self._ranges, self._format = ranges, number_format
        self._squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def linear(self, name: str, layer: nn.Linear, x: Tensor, output: Tensor) -> Tensor:
        scale = self._ranges.linears[name].scale(self._format)
        quantized = F.linear(
            fake_quantized(x, scale, self._format), quantized_weight(layer.weight, self._format), layer.bias
        )
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
    for name in layers.linears:
        magnitudes = network.get_parameter(f"{name}.weight").abs()
        yield name, "weight", float((magnitudes.amax(1) / magnitudes.mean(1).clamp_min(TINY)).max())
        yield name, "activation", ranges.linears[name].largest / max(ranges.linears[name].mean, TINY)
    for name in layers.attentions:
        for part, activation in zip(("queries", "keys", "values"), ranges.attentions[name], strict=True):
            yield name, part, activation.largest / max(activation.mean, TINY)
