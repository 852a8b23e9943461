"""A small network of one linear layer and one attention, watched."""

from __future__ import annotations

import pytest
import torch
from mutoscope_export.families.policy import QuantizedLayers
from mutoscope_export.quantization.layer_watch import watch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query=2 * x, key=3 * x, value=5 * x)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.watched, self.other = nn.Linear(4, 4), Attention(), Attention()

    def forward(self, x: Tensor) -> Tensor:
        return self.watched(self.linear(x)) + self.other(x)


LAYERS = QuantizedLayers(("linear",), ("watched",))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network()


def test_it_sees_what_each_layer_reads_and_changes_nothing(network: Network) -> None:
    x, seen = torch.randn(1, 2, 3, 4), {}
    expected = network(x)
    with watch(
        network,
        LAYERS,
        lambda name, layer, given, output: seen.update({name: (layer, given, output)}),
        lambda name, q, k, v: seen.update({name: (q, k, v)}),
    ):
        assert torch.equal(network(x), expected)
    inner = network.linear(x)
    layer, given, output = seen["linear"]
    assert layer is network.linear and torch.equal(given, x) and torch.equal(output, inner)
    for factor, operand in zip((2, 3, 5), seen["watched"], strict=True):
        assert torch.equal(operand, factor * inner)
    assert seen.keys() == {"linear", "watched"}


def test_what_the_functions_return_takes_the_place_of_the_result_and_only_while_it_watches(network: Network) -> None:
    x = torch.randn(1, 2, 3, 4)
    expected = network(x)
    with watch(network, LAYERS, lambda *_: torch.zeros_like(x), lambda name, q, k, v: v + 7):
        torch.testing.assert_close(network(x), 7 + network.other(x))
    assert torch.equal(network(x), expected)
