"""What a graph with LoRA inputs is compared with: a network whose weights are sums as long as it is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mutoscope.bundle.manifest import Graph
from mutoscope.errors import RequestError
from mutoscope_export.families.wan.graph_sources import text_to_video
from mutoscope_export.lora_forms import changed_by_lora, lora_forms, parameters_of, with_lora_forms
from torch import nn

from tests.bundles import tensors


def a_graph(*names: str, precision: str = "fp32", role: str = "denoiser") -> Graph:
    inputs = tensors(**{f"{name}.lora_{half}": ("R", "R") for name in names for half in "ab"})
    return Graph(role=role, precision=precision, file=f"{precision}.onnx", inputs=inputs, outputs=())


def test_weights_that_have_inputs_are_sums_inside_and_themselves_afterwards() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(2, 4, (1, 2, 2)), nn.Linear(4, 3), nn.Linear(3, 3)).bfloat16()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with changed_by_lora(model, [a_graph("0.weight"), a_graph("1.weight")]) as arrays, torch.no_grad():
        assert sorted(arrays) == ["0.weight.lora_a", "0.weight.lora_b", "1.weight.lora_a", "1.weight.lora_b"]
        for name, module in (("0.weight", model[0]), ("1.weight", model[1])):
            a, b = arrays[f"{name}.lora_a"], arrays[f"{name}.lora_b"]
            assert np.array_equal(a, a.astype(np.float16)) and np.array_equal(b, b.astype(np.float16))
            stored = before[name].float()
            sums = stored + torch.from_numpy(a @ b).T.reshape(stored.shape)
            assert torch.allclose(module.weight, sums)
            assert 0.05 < (module.weight - stored).norm() / stored.norm() < 0.2
        assert torch.equal(model[2].weight, before["2.weight"])
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_denoisers_alone_get_a_second_form_after_the_first() -> None:
    forms = {
        source.role: [(form.precision, form.file) for form in with_lora_forms(source).forms]
        for source in text_to_video(("fp32", "bf16"), ("transformer", "transformer_2"))
    }
    both = [("fp32", "model.onnx"), ("fp32", "model-lora.onnx"), ("bf16", "model-bf16.onnx"),
            ("bf16", "model-bf16-lora.onnx")]  # fmt: skip
    assert (forms["denoiser"], forms["denoiser_low"]) == (both, both)
    assert forms["text_encoder"] == [both[0], both[2]]


@pytest.mark.parametrize("precision", ["int8-static", "nvfp4"])
def test_what_has_too_coarse_steps_is_refused_by_name(precision: str) -> None:
    (source,) = (each for each in text_to_video((precision,)) if each.role == "denoiser")
    with pytest.raises(RequestError, match=f"lora_inputs is not for the precision {precision}, .* int8, .* fp8$"):
        with_lora_forms(source)


def test_the_manifest_has_each_denoiser_once_with_all_its_graphs_and_parameters() -> None:
    parameters = parameters_of(nn.Linear(2, 3), lambda name: f"original.{name}")
    assert parameters["weight"].shape == (3, 2) and parameters["weight"].original == "original.weight"
    graphs = [[a_graph("a")], [a_graph("a", precision="bf16")], [a_graph("a", role="denoiser_low")]]
    first, second = lora_forms((parts, parameters) for parts in graphs)
    assert (first.role, [graph.precision for graph in first.graphs]) == ("denoiser", ["fp32", "bf16"])
    assert (second.role, second.parameters) == ("denoiser_low", parameters)
