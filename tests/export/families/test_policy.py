"""Which layers each step of a policy takes, by names."""

from __future__ import annotations

import itertools

import pytest
from mutoscope_export.families.policy import QuantizationPolicy, QuantizationStep
from mutoscope_export.families.wan.precision_policy import CALIBRATED
from mutoscope_export.graphs.number_formats import E4M3

FP8 = CALIBRATED["fp8"]
LINEARS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v",
           "attn2.to_out.0", "ffn.net.0.proj", "ffn.net.2")  # fmt: skip
OUTSIDE = ("patch_embedding", "condition_embedder.time_proj", "condition_embedder.text_embedder.linear_1", "proj_out")


def names_of(blocks: int) -> list[str]:
    inside = [f"blocks.{n}.{rest}" for n in range(blocks) for rest in ("attn1", "attn2", "attn1.norm_q", *LINEARS)]
    return [*OUTSIDE, *inside]


def test_every_step_of_wan_adds_its_layers_and_loses_none() -> None:
    found = [FP8.layers(names_of(3), step) for step in FP8.step_names]
    assert found[0].linears == ("blocks.1.ffn.net.0.proj", "blocks.1.ffn.net.2")
    for before, after in itertools.pairwise(found):
        assert set(before.linears) <= set(after.linears) and set(before.attentions) <= set(after.attentions)
        assert before != after
    assert set(found[-1].linears) == {f"blocks.1.{name}" for name in LINEARS} - {
        "blocks.1.attn2.to_k", "blocks.1.attn2.to_v",
    }  # fmt: skip
    assert found[-1].attentions == ("blocks.1.attn1",)
    assert FP8.default in FP8.step_names


@pytest.mark.parametrize(("blocks", "kept"), [(3, 1), (8, 1), (30, 2), (40, 3)])
def test_blocks_at_both_ends_keep_their_precision(blocks: int, kept: int) -> None:
    linears = FP8.layers(names_of(blocks), FP8.step_names[0]).linears
    assert {int(name.split(".")[1]) for name in linears} == set(range(kept, blocks - kept))


def test_of_two_rows_of_blocks_the_ends_of_each_keep_their_precision() -> None:
    """As VACE has them: 30 blocks, and 15 that read the control."""
    second = [f"vace_{name}" for name in names_of(15) if name.startswith("blocks")]
    names = [*names_of(30), *second, "vace_blocks.7.proj_out"]
    layers = FP8.layers(names, FP8.default)
    alone = FP8.layers(names_of(30), FP8.default)
    assert set(alone.linears) == {name for name in layers.linears if name.startswith("blocks")}
    of_control = {name for name in layers.linears if name.startswith("vace")}
    assert of_control == {f"vace_{name}" for name in FP8.layers(names_of(15), FP8.default).linears}
    assert {int(name.split(".")[1]) for name in of_control} == set(range(1, 14))
    assert set(layers.attentions) - set(alone.attentions) == {f"vace_blocks.{n}.attn1" for n in range(1, 14)}


def test_names_lead_to_the_weights_of_the_graph() -> None:
    assert FP8.weight.format("blocks.1.ffn.net.2") == "transformer.blocks.1.ffn.net.2.weight"
    assert FP8.values_weight.format("blocks.1.attn1") == "transformer.blocks.1.attn1.to_v.weight"


def test_a_network_whose_blocks_are_all_kept_is_refused() -> None:
    with pytest.raises(ValueError, match="of 2 blocks, 1 at each end keep their precision, and no layer is left"):
        FP8.layers(names_of(2), FP8.default)


def test_an_unknown_step_is_refused_with_the_list() -> None:
    policy = QuantizationPolicy(
        E4M3, r"b(\d)\.(.*)", 0.1, (QuantizationStep("one", "x"), QuantizationStep("two", "y")), "one", "{}", "{}"
    )
    with pytest.raises(ValueError, match="no step 'three'; the steps are: one, two"):
        policy.layers(["b0.x"], "three")
