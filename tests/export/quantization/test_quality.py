"""The measurement's arithmetic against the ml_dtypes package, and what it says of easy and hard networks."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from mutoscope_export.families.family import Recording
from mutoscope_export.families.policy import QuantizationPolicy, QuantizationStep
from mutoscope_export.graphs.number_formats import E4M3, INT8
from mutoscope_export.quantization.calibration import ActivationRange, Ranges
from mutoscope_export.quantization.quality import fake_quantized, measure, quantized_weight
from torch import Tensor, nn

POLICY = QuantizationPolicy(
    E4M3, r"blocks\.(\d)\.(.+)", 0.1, (QuantizationStep("a", "a"), QuantizationStep("b", "b")), "b", "{}", "{}"
)


class Network(nn.Module):
    """Three blocks of two linear layers, `a` and `b`, called as Diffusers calls a denoiser."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({name: nn.Linear(32, 32) for name in "ab"}) for _ in range(3))

    def forward(self, hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        x = hidden_states
        for block in self.blocks:
            x = block["b"](block["a"](x))
        return (x,)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().requires_grad_(False)


def ranges(largest: float = 4.0) -> Ranges:
    torch.manual_seed(1)
    spreads = {f"blocks.1.{name}": ActivationRange(largest, total=1.0, count=1) for name in "ab"}
    call = {"hidden_states": torch.randn(1, 4, 2, 5, 32).clamp(-3, 3)}
    recording = Recording({}, (call, call))
    return Ranges(spreads, {}, [recording])


def test_through_e4m3_is_the_rounding_of_ml_dtypes_cut_off_at_448() -> None:
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 100
    expected = np.clip(x / np.float32(0.3), -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * 0.3
    np.testing.assert_allclose(fake_quantized(torch.from_numpy(x), 0.3, E4M3).numpy(), expected, rtol=1e-6)


def test_through_int8_is_the_nearest_of_255_steps() -> None:
    x = torch.tensor([0.04, -0.06, 3.0, 12.7, 20.0, -20.0])
    torch.testing.assert_close(fake_quantized(x, 0.1, INT8), torch.tensor([0.0, -0.1, 3.0, 12.7, 12.7, -12.7]))


def test_a_weight_has_a_scale_for_each_output_channel_and_zeros_stay() -> None:
    weight = torch.tensor([[448.0, 1.0], [448e-6, 1e-6], [0.0, 0.0]])
    torch.testing.assert_close(quantized_weight(weight, E4M3), weight, rtol=1e-6, atol=0)


def test_each_step_costs_something_and_only_the_layers_between_the_ends_are_counted(network: Network) -> None:
    steps = measure(network, POLICY, ranges(), "b")["steps"]
    assert [(step["step"], step["linears"], step["attentions"]) for step in steps] == [("a", 1, 0), ("b", 2, 0)]
    assert 0.005 < steps[0]["relative_l2"] < steps[1]["relative_l2"] < 0.1


def test_weights_that_e4m3_holds_exactly_cost_nothing(network: Network) -> None:
    for name in "ab":
        network.blocks[1][name].weight.copy_(torch.eye(32))
    found = ranges(largest=448 / 1.1 / 128)
    latents = found.recordings[0].calls[0]["hidden_states"]
    latents.copy_(torch.randint(-7, 8, latents.shape) / 8)
    for end in (0, 2):
        for name in "ab":
            network.blocks[end][name].weight.copy_(torch.eye(32))
    for block in network.blocks:
        for layer in block.values():
            layer.bias.zero_()
    assert measure(network, POLICY, found, "b")["steps"][1]["relative_l2"] < 1e-6


def test_what_fp8_does_not_suit_is_named_with_the_measure_and_its_bound(network: Network) -> None:
    found = ranges()
    assert measure(network, POLICY, found, "b")["unfit"] == []
    network.blocks[1]["a"].weight[3] = 1e-9
    network.blocks[1]["a"].weight[3, 7] = 1.0  # of the mean 32 times: all of it
    assert measure(network, POLICY, found, "b")["unfit"] == []
    found.linears["blocks.1.b"].largest = 8e3
    (entry,) = measure(network, POLICY, found, "b")["unfit"]
    assert (entry["layer"], entry["what"], entry["largest_over_mean"]) == ("blocks.1.b", "activation", 8e3)
    assert entry["bound"] == 7168


def test_int8_names_what_e4m3_still_suits(network: Network) -> None:
    found = ranges()
    found.linears["blocks.1.b"].largest = 40.0  # of the mean 40 times: one of 127 steps is a third of it
    assert measure(network, POLICY, found, "b")["unfit"] == []
    (entry,) = measure(network, replace(POLICY, number_format=INT8), found, "b")["unfit"]
    assert (entry["layer"], entry["what"], entry["bound"]) == ("blocks.1.b", "activation", 31.75)


def test_a_weight_with_one_value_far_above_the_others_of_its_channel_is_named() -> None:
    network = Network()
    network.blocks[1]["a"], network.blocks[1]["b"] = nn.Linear(32, 10_000), nn.Linear(10_000, 32)
    network.requires_grad_(False)
    weight = network.blocks[1]["b"].weight
    weight[5] = 1e-6
    weight[5, 0] = 1.0  # the mean is 1e-6 + 1e-4
    (entry,) = measure(network, POLICY, ranges(), "b")["unfit"]
    ratio = pytest.approx(1 / (1e-6 + 1e-4), rel=1e-3)
    assert entry == {"layer": "blocks.1.b", "what": "weight", "largest_over_mean": ratio, "bound": 7168}


def test_the_worst_layers_come_first(network: Network) -> None:
    found = ranges()
    found.linears["blocks.1.b"].largest = 0.01  # nearly all that it reads is cut off
    worst = measure(network, POLICY, found, "b")["worst_layers"]
    assert list(worst) == ["blocks.1.b", "blocks.1.a"]
    assert worst["blocks.1.b"] > 0.5 > 10 * worst["blocks.1.a"]
