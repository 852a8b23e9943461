"""Checkpoints of Wan VACE: what their manifests say, what is refused, and the denoiser against Diffusers' network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from mutoscope.bundle.conditionings import ControlConditioning
from mutoscope_export.checkpoint.replacements import Replacements
from mutoscope_export.declaration import declared_manifest
from mutoscope_export.errors import ExportError
from mutoscope_export.families.wan import control, denoiser
from mutoscope_export.families.wan.graph_sources import BLOCKS
from mutoscope_export.families.wan.random_checkpoint import random_checkpoint
from mutoscope_export.graphs.parts import Blocks
from mutoscope_export.opening import open_checkpoint
from onnx import helper, numpy_helper

from tests.export.families.test_wan_image_to_video import TINY_VAE
from tests.export.spoiling import edit

SIZES = {"B": 2, "L": 5, "F": 3, "h": 6, "w": 8, "K": 3}
SMALL: dict[str, Any] = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 40, "freq_dim": 32,
    "text_dim": 16, "in_channels": 4, "out_channels": 4, "vace_in_channels": 24,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "every second layer, as 1.3B": {"num_layers": 4, "vace_layers": [0, 2]},
    "every fifth layer, as 14B": {"num_layers": 7, "vace_layers": [0, 5]},
    "all layers, no norm before the text": {"num_layers": 2, "vace_layers": [0, 1], "cross_attn_norm": False},
}


def random_network(**config: Any) -> WanVACETransformer3DModel:
    """Weights that differ from the zeros and ones that a network begins with."""
    torch.manual_seed(0)
    network = WanVACETransformer3DModel(**SMALL | config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize("config", CONFIGS)
def test_a_step_is_that_of_diffusers_with_a_scale_for_each_layer(config: str) -> None:
    network = random_network(**CONFIGS[config])
    inputs = control.example_inputs(network, SIZES)
    next_state, peak = control.ControlStep(network)(**inputs)
    velocities = network(
        inputs["latents"].expand(2, -1, -1, -1, -1), inputs["timestep"].expand(2), inputs["prompt_embeds"],
        control_hidden_states=inputs["control"].expand(2, -1, -1, -1, -1),
        control_hidden_states_scale=inputs["control_scale"],
    ).sample  # fmt: skip
    values = {name: value.double().numpy() for name, value in inputs.items()}
    velocity = np.einsum("b,b...->...", values["guidance_weights"], velocities.double().numpy())
    expected = np.einsum("ij,j...->i...", values["solver_a"], values["state"])
    expected += np.multiply.outer(values["solver_b"], velocity)
    np.testing.assert_allclose(next_state, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_allclose(peak, np.abs(velocity).max(), rtol=2e-5)


def test_each_layer_follows_the_control_as_much_as_its_scale_says() -> None:
    """Without any of it, the network is that of text-to-video with the same weights."""
    network = random_network(**CONFIGS["every second layer, as 1.3B"])
    inputs = control.example_inputs(network, SIZES)
    plain = WanTransformer3DModel(
        **{name: value for name, value in network.config.items() if not name.startswith(("_", "vace"))}
    )
    plain.load_state_dict({name: weight for name, weight in network.state_dict().items() if "vace" not in name})
    of_text = {name: value for name, value in inputs.items() if not name.startswith("control")}
    with torch.no_grad():
        expected, _ = denoiser.DenoiserStep(plain)(**of_text)
    made = [
        control.ControlStep(network)(**inputs | {"control_scale": torch.tensor(scales)})[0]
        for scales in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    ]
    torch.testing.assert_close(made[0], expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (made[one] - made[other]).abs().max() > 0.01 * made[one].abs().max()


def made(folder: Path, **transformer: Any) -> Path:
    return random_checkpoint(folder, **{"num_layers": 3, "vace_layers": [0, 2]} | transformer, vae_config=TINY_VAE)


def test_a_manifest_says_what_is_followed(tmp_path: Path) -> None:
    manifest = declared_manifest(open_checkpoint(made(tmp_path / "vace")))
    assert manifest.controls == (
        ControlConditioning(
            name="video", mask="mask", references="reference_images", scale="conditioning_scale",
            role="vae_encoder_first", following="vae_encoder_next", feeds={"condition": "control"},
            scale_input="control_scale", layers=2,
        ),
    )  # fmt: skip
    defaults = manifest.defaults
    assert (defaults.height, defaults.width, defaults.num_frames, defaults.fps) == (480, 832, 81, 16)
    assert (defaults.num_inference_steps, defaults.guidance_scale, manifest.scheduler["flow_shift"]) == (50, 5.0, 3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vace_in_channels": 96}, "vace_in_channels of the transformer is 96, .* makes a control of 12 channels"),
        (
            {"vace_layers": [2, 0]},
            r"vace_layers of the transformer is \[2, 0\]; supported are layers in ascending order",
        ),
        ({"out_channels": 2}, "'out_channels': 2"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    checkpoint = made(tmp_path / "vace")
    edit(checkpoint / "transformer" / "config.json", lambda config: config.update(change))
    with pytest.raises(ExportError, match=message):
        open_checkpoint(checkpoint)


def test_it_begins_from_no_video(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="makes no video of another, so video_input is not for it"):
        open_checkpoint(made(tmp_path / "vace"), Replacements(video_input=True))


def test_a_second_transformer_is_refused_by_name(tmp_path: Path) -> None:
    """As Wan 2.2 VACE-Fun has one."""
    checkpoint = made(tmp_path / "vace")
    second = ["diffusers", "WanVACETransformer3DModel"]
    edit(checkpoint / "model_index.json", lambda index: index.update(transformer_2=second))
    with pytest.raises(ExportError, match=r"the transformer_2 of .* supported: none"):
        open_checkpoint(checkpoint)


def test_in_parts_each_vace_block_is_where_its_hint_is_taken() -> None:
    """Three layers, of which the first and the last have hints: otherwise every hint would pass from part to part."""
    layers = [("c0", "x", "vace_blocks.0"), ("h0", "x", "blocks.0"), ("h1", "s0", "blocks.1"),
              ("c1", "c0", "vace_blocks.1"), ("h2", "h1", "blocks.2")]  # fmt: skip
    nodes = [helper.make_node("MatMul", [read, f"transformer.{block}.weight"], [made]) for made, read, block in layers]
    nodes.insert(2, helper.make_node("Add", ["h0", "c0"], ["s0"]))
    nodes.append(helper.make_node("Add", ["h2", "c1"], ["y"]))
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, 4]) for name in "xy")
    weight = np.eye(4, dtype=np.float32)
    weights = [numpy_helper.from_array(weight, f"transformer.{block}.weight") for _, _, block in layers]
    graph = ir.from_proto(helper.make_model(helper.make_graph(nodes, "rows", [x], [y], weights))).graph
    parts = [{node.outputs[0].name for node in part} for part in Blocks(BLOCKS["denoiser"], 1)(graph)]
    assert parts == [{"c0", "h0", "s0"}, {"h1"}]  # the last has the rest
