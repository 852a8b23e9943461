"""The exported denoiser against Diffusers' own forward, with guidance and the solver's line done in NumPy."""

from __future__ import annotations

import collections
import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import WanTransformer3DModel
from mutoscope_export.families.wan import denoiser
from mutoscope_export.graphs.trace import dynamic_shapes, export_graph
from mutoscope_export.passes.int8 import DynamicInt8

CONFIGS = {
    "wan": {"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2},
    "cubic patches, no cross norm": {
        "patch_size": (2, 2, 2), "num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 1,
        "cross_attn_norm": False, "eps": 1e-3,
    },
    "single-pixel patches, bfloat16 checkpoint": {
        "patch_size": (1, 1, 1), "num_attention_heads": 4, "attention_head_dim": 10, "num_layers": 1,
        "in_channels": 3, "out_channels": 3, "freq_dim": 32,
    },
}  # fmt: skip

# Branches, text tokens, latent frames, latent height, latent width, solver rows. None is the traced shape.
SHAPES = [(1, 3, 2, 4, 10, 2), (2, 9, 6, 8, 2, 5), (2, 1, 2, 2, 2, 3)]


def random_transformer(**config: object) -> WanTransformer3DModel:
    """Every parameter random and large enough to matter, also those that start as zeros or ones."""
    defaults = {"in_channels": 4, "out_channels": 4, "text_dim": 10, "freq_dim": 16, "ffn_dim": 40}
    transformer = WanTransformer3DModel(**(defaults | config)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            is_gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(noise / fan_in**0.5 + is_gain)
    return transformer


def expected_step(transformer: WanTransformer3DModel, inputs: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Next state and velocity by Diffusers and float64 NumPy."""
    branches = inputs["prompt_embeds"].shape[0]
    with torch.no_grad():
        velocities = transformer(
            hidden_states=inputs["latents"].expand(branches, -1, -1, -1, -1),
            timestep=inputs["timestep"].expand(branches),
            encoder_hidden_states=inputs["prompt_embeds"],
        ).sample
    values = {name: value.double().numpy() for name, value in inputs.items()}
    velocity = np.einsum("b,b...->...", values["guidance_weights"], velocities.double().numpy())
    moved = np.einsum("ij,j...->i...", values["solver_a"], values["state"])
    return moved + np.multiply.outer(values["solver_b"], velocity), velocity


def inputs_of_shape(
    transformer: WanTransformer3DModel, shape: tuple[int, ...], seed: int = 1
) -> dict[str, torch.Tensor]:
    return denoiser.example_inputs(transformer, dict(zip("BLFhwK", shape, strict=True)), seed)


def write_graph(transformer: WanTransformer3DModel, folder: Path, **options: object) -> Path:
    step = denoiser.DenoiserStep(transformer)
    inputs, dynamic = denoiser.example_inputs(transformer), dynamic_shapes(denoiser.symbolic_inputs(transformer))
    outputs = [name for name, _, _ in denoiser.symbolic_outputs(transformer)]
    export_graph(step, inputs, dynamic, outputs, folder, **options)
    return folder / "model.onnx"


def run_graph(graph: Path, inputs: dict[str, torch.Tensor]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})


@pytest.fixture(scope="module")
def export_config(tmp_path_factory: pytest.TempPathFactory):
    """Gives, by name of the config, a float32 transformer and the graph written from it, each written once."""

    @functools.cache
    def export(name: str) -> tuple[WanTransformer3DModel, Path]:
        source = transformer = random_transformer(**CONFIGS[name])
        if "bfloat16" in name:
            source = WanTransformer3DModel.from_config(transformer.config).to(torch.bfloat16)
            source.load_state_dict(transformer.state_dict())
            transformer.load_state_dict(source.state_dict())
        return transformer, write_graph(source, tmp_path_factory.mktemp("denoiser"))

    return export


@pytest.fixture(params=CONFIGS)
def exported(request: pytest.FixtureRequest, export_config):
    return export_config(request.param)


@pytest.fixture
def wan(export_config):
    return export_config("wan")


def test_one_step_equals_diffusers_at_shapes_that_were_not_traced(exported):
    transformer, graph = exported
    for shape in SHAPES:
        inputs = inputs_of_shape(transformer, shape)
        next_state, velocity_peak = run_graph(graph, inputs)
        expected, velocity = expected_step(transformer, inputs)
        assert next_state.shape == expected.shape
        np.testing.assert_allclose(next_state, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
        np.testing.assert_allclose(velocity_peak, np.abs(velocity).max(), rtol=2e-5)


def test_no_block_transposes_scatters_or_gathers(exported):
    transformer, graph = exported
    count = collections.Counter(node.op_type for node in onnx.load(graph, load_external_data=False).graph.node)
    blocks = len(transformer.blocks)
    assert count["Transpose"] == 2  # the latents into patches, the patches into latents
    assert not count.keys() & {"ScatterND", "GatherND", "ScatterElements", "GatherElements", "Cast", "Conv"}
    assert count["Attention"] == count["RotaryEmbedding"] == 2 * blocks
    assert count["RMSNormalization"] == 4 * blocks
    assert count["Gelu"] == blocks + 1
    assert count["LayerNormalization"] == (3 if transformer.config.cross_attn_norm else 2) * blocks + 1


def test_attention_alone_tells_branches_apart(exported):
    graph = onnx.load(exported[1], load_external_data=False).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    for node in graph.node:
        if node.op_type == "LayerNormalization":
            assert shapes[node.output[0]][0].dim_value == 1
        elif node.op_type == "Attention":
            assert shapes[node.output[0]][0].dim_param == "B"


def test_inputs_and_outputs_are_those_the_manifest_will_state(exported):
    transformer, graph = exported
    written = onnx.load(graph, load_external_data=False).graph
    for values, stated in (
        (written.input, denoiser.symbolic_inputs(transformer)),
        (written.output, denoiser.symbolic_outputs(transformer)),
    ):
        shapes = [
            (value.name, "float32", tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim))
            for value in values
        ]
        assert shapes == stated
        assert all(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for value in values)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_velocity_peak_is_not_finite_when_one_value_of_the_velocity_is_not(wan, broken):
    transformer, graph = wan
    inputs = inputs_of_shape(transformer, SHAPES[0])
    assert np.isfinite(run_graph(graph, inputs)[1])
    inputs["latents"][0, 1, 2, 3] = broken
    assert not np.isfinite(run_graph(graph, inputs)[1])


def test_guidance_in_two_calls_of_one_branch_gives_the_same_state(wan):
    transformer, graph = wan
    both = inputs_of_shape(transformer, SHAPES[1])
    first = both | {name: both[name][:1] for name in ("prompt_embeds", "guidance_weights")}
    second = both | {name: both[name][1:] for name in ("prompt_embeds", "guidance_weights")}
    second |= {"state": torch.from_numpy(run_graph(graph, first)[0]), "solver_a": torch.eye(both["state"].shape[0])}
    expected = run_graph(graph, both)[0]
    np.testing.assert_allclose(run_graph(graph, second)[0], expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_int8_quantizes_every_large_layer_and_stays_near_diffusers(wan, tmp_path):
    transformer, _ = wan
    graph = write_graph(transformer, tmp_path, passes=[DynamicInt8(denoiser.QUANTIZABLE_WEIGHTS)])
    count = collections.Counter(node.op_type for node in onnx.load(graph, load_external_data=False).graph.node)
    blocks = len(transformer.blocks)
    assert count["MatMulInteger"] == 10 * blocks + 2
    # A block quantizes what its self-attention reads, what goes into the other five layers, and all share the text.
    assert count["DynamicQuantizeLinear"] == 6 * blocks + 3
    inputs = inputs_of_shape(transformer, SHAPES[1]) | {"state": torch.zeros(1, 4, 6, 8, 2)}
    inputs |= {"solver_a": torch.zeros(1, 1), "solver_b": torch.ones(1)}
    _, velocity = expected_step(transformer, inputs)
    error = np.linalg.norm(run_graph(graph, inputs)[0][0] - velocity) / np.linalg.norm(velocity)
    assert 1e-4 < error < 3e-2


def test_export_copies_no_weight_of_the_transformer():
    transformer = random_transformer(**CONFIGS["wan"])
    shared = {id(parameter) for parameter in denoiser.DenoiserStep(transformer).parameters()}
    assert shared == {id(parameter) for parameter in transformer.parameters()}


@pytest.mark.parametrize(
    "config",
    [{"image_dim": 8}, {"added_kv_proj_dim": 24}, {"in_channels": 9}, {"image_dim": 8, "pos_embed_seq_len": 5}],
)
def test_other_than_text_to_video_is_refused_with_what_is_supported(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))}.*Supported are Wan text-to-video"):
        denoiser.DenoiserStep(random_transformer(**(CONFIGS["wan"] | config)))
