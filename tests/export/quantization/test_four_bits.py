"""The choice of layers, on a network whose layers cost what their weights say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mutoscope_export.families.family import Recording
from mutoscope_export.families.policy import QuantizationPolicy, QuantizationStep
from mutoscope_export.graphs.number_formats import E4M3
from mutoscope_export.quantization.calibration import ActivationRange, Ranges
from mutoscope_export.quantization.four_bits import Choice, choose_four_bits
from mutoscope_export.quantization.quantize import quality_table
from torch import Tensor, nn

POLICY = QuantizationPolicy(
    E4M3, r"blocks\.(\d)\.(.+)", 0.1, (QuantizationStep("all", "[abcd]"),), "all", "{}", "{}", four_bits_error=2.0
)
NAMES = tuple(f"blocks.1.{name}" for name in "abcd")


class Network(nn.Module):
    """Three blocks whose four layers are summed with weights of their own, called as Diffusers calls a denoiser."""

    def __init__(self, d_inputs: int = 32) -> None:
        super().__init__()
        widths = {"a": 32, "b": 32, "c": 32, "d": d_inputs}
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(width, 64, bias=False) for name, width in widths.items()}) for _ in range(3)
        )
        self.shares = {"a": 1.0, "b": 0.1, "c": 0.3, "d": 0.02}

    def forward(self, hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        block = self.blocks[1]
        parts = [
            share * block[name](hidden_states[..., : block[name].in_features]) for name, share in self.shares.items()
        ]
        return (torch.stack(parts).sum(0),)


def choice(factor: float, network: Network) -> Choice:
    spreads = {name: ActivationRange(4.0, total=1.0, count=1) for name in NAMES}
    random = torch.Generator().manual_seed(2)
    calls = [{"hidden_states": torch.randn(1, 40, 32, generator=random).clamp(-3, 3)} for _ in range(3)]
    ranges = Ranges(spreads, {}, [Recording({}, (call,)) for call in calls])
    policy = replace(POLICY, four_bits_error=factor)
    return choose_four_bits(
        network, policy, policy.layers([name for name, _ in network.named_modules()], "all"), ranges
    )


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().requires_grad_(False)


def test_layers_are_taken_from_what_costs_least_while_the_error_stays_allowed(network: Network) -> None:
    by_cost = ["d", "b", "c", "a"]  # by their shares of the output
    found = {factor: choice(factor, network) for factor in (1.0, 1.1, 1.7, 10.0)}
    counts = [len(each.layers.four_bits) for each in found.values()]
    assert counts == sorted(counts) and (counts[0], counts[-1]) == (0, 4) and len(set(counts)) > 2
    for factor, each in found.items():
        taken = by_cost[: len(each.layers.four_bits)]
        assert each.layers.four_bits == tuple(name for name in NAMES if name[-1] in taken)
        assert set(each.layers.eight_bits) == set(NAMES) - set(each.layers.four_bits)
        errors = {step["four_bits"]: step["relative_l2"] for step in each.report["steps"]}
        assert errors[len(taken)] <= factor * errors[0]
        assert all(error > factor * errors[0] for count, error in errors.items() if count > len(taken))


def test_the_report_and_the_table_say_what_each_share_costs_and_which_was_chosen(network: Network) -> None:
    report = choice(1.7, network).report
    assert [step["four_bits"] + step["linears"] for step in report["steps"]] == [4] * len(report["steps"])
    assert [step["four_bits"] for step in report["steps"]] == [0, 1, 2, 3, 4]
    assert set(report["worst_layers"]) == set(NAMES)
    lines = quality_table("nvfp4", report).splitlines()
    assert lines[0].split("  ")[0] == "nvfp4 up to this step" and "in NVFP4" in lines[0]
    assert any(line.endswith(report["policy"]) for line in lines)


def test_a_layer_in_four_bits_costs_more_than_in_eight_and_less_than_an_outlier_makes_it(network: Network) -> None:
    errors = [step["relative_l2"] for step in choice(10.0, network).report["steps"]]
    assert errors == sorted(errors)
    assert 2 < errors[-1] / errors[0] < 6


def test_a_layer_whose_inputs_are_no_blocks_stays_in_eight_bits() -> None:
    torch.manual_seed(0)
    found = choice(10.0, Network(d_inputs=24).requires_grad_(False)).layers
    assert found.eight_bits == ("blocks.1.d",) and found.four_bits == NAMES[:3]
