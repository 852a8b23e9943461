"""The exported text encoder against the one of transformers, at lengths that were not traced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mutoscope_export.families.wan import text
from mutoscope_export.families.wan.graph_sources import text_to_video
from mutoscope_export.graphs.trace import Pass, dynamic_shapes, export_graph
from mutoscope_export.passes.bias_in_turn import bias_in_turn
from mutoscope_export.passes.int8 import DynamicInt8
from transformers import UMT5Config, UMT5EncoderModel

# Branches, text tokens: shorter than traced, longer, and beyond the distance from which all biases are the same.
SHAPES = [(1, 1), (2, 4), (1, 11), (2, 45)]


def random_encoder(**config: object) -> UMT5EncoderModel:
    defaults = {"vocab_size": 50, "d_model": 24, "d_kv": 6, "d_ff": 32, "num_layers": 2, "num_heads": 3}
    buckets = {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 24}
    encoder = UMT5EncoderModel(UMT5Config(**(defaults | buckets | config))).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim > 1 else 1))
    return encoder


def int8_passes() -> Sequence[Pass]:
    (form,) = next(source.forms for source in text_to_video(["int8"]) if source.role == "text_encoder")
    return form.passes


def write_graph(encoder: UMT5EncoderModel, folder: Path, passes: Sequence[Pass] = ()) -> Path:
    inputs, dynamic = text.example_inputs(encoder), dynamic_shapes(text.symbolic_inputs(encoder))
    names = [name for name, _, _ in text.symbolic_outputs(encoder)]
    export_graph(text.TextEncoder(encoder), inputs, dynamic, names, folder, passes=passes)
    return folder / "model.onnx"


def run_graph(graph: Path, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]


def expected_embeds(encoder: UMT5EncoderModel, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """As `WanPipeline` does: cut to the length of the prompt, then zeros up to the padded length."""
    with torch.no_grad():
        states = encoder(**inputs).last_hidden_state.numpy()
    embeds = np.zeros_like(states)
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        embeds[row, :length] = states[row, :length]
    return embeds


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    """A float32 encoder, and the graph written from the same weights in bfloat16."""
    encoder = random_encoder().to(torch.bfloat16)
    graph = write_graph(encoder, tmp_path_factory.mktemp("text_encoder"))
    return encoder.float(), graph


@pytest.mark.parametrize(("branches", "text_tokens"), SHAPES)
def test_embeds_equal_transformers_at_lengths_that_were_not_traced(exported, branches, text_tokens):
    encoder, graph = exported
    for seed in range(3):
        inputs = text.example_inputs(encoder, branches=branches, text_tokens=text_tokens, seed=seed)
        expected = expected_embeds(encoder, inputs)
        np.testing.assert_allclose(run_graph(graph, inputs), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_what_stands_in_the_padding_changes_nothing(exported):
    _, graph = exported
    inputs = {"input_ids": torch.arange(1, 10)[None], "attention_mask": torch.tensor([[1] * 6 + [0] * 3])}
    embeds = run_graph(graph, inputs)
    assert (embeds[:, 6:] == 0).all()
    inputs["input_ids"] = torch.where(inputs["attention_mask"] == 0, 0, inputs["input_ids"])
    np.testing.assert_array_equal(run_graph(graph, inputs), embeds)


def test_inputs_and_outputs_are_those_the_manifest_will_state(exported):
    encoder, graph = exported
    written = onnx.load(graph, load_external_data=False).graph
    for values, stated in (
        (written.input, text.symbolic_inputs(encoder)),
        (written.output, text.symbolic_outputs(encoder)),
    ):
        types = [value.type.tensor_type for value in values]
        shapes = [tuple(dim.dim_param or dim.dim_value for dim in type_.shape.dim) for type_ in types]
        dtypes = [onnx.helper.tensor_dtype_to_np_dtype(type_.elem_type).name for type_ in types]
        assert list(zip([value.name for value in values], dtypes, shapes, strict=True)) == stated


def test_graph_scatters_nothing_and_computes_no_logarithm(exported):
    _, graph = exported
    operators = {node.op_type for node in onnx.load(graph, load_external_data=False).graph.node}
    assert not operators & {"ScatterND", "GatherND", "ScatterElements", "GatherElements", "Log"}


def test_half_precision_products_keep_the_output_float32_and_near():
    encoder = random_encoder()
    inputs = text.example_inputs(encoder, branches=2, text_tokens=9)
    with torch.no_grad():
        embeds = text.TextEncoder(encoder, torch.bfloat16)(**inputs)
    expected = expected_embeds(encoder, inputs)
    assert embeds.dtype == torch.float32
    error = np.linalg.norm(embeds.numpy() - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 5e-2


def test_a_feed_forward_beyond_the_range_of_float16_does_not_overflow_in_it():
    encoder = random_encoder()
    peaks = []
    for block in encoder.encoder.block:
        layer = block.layer[1].DenseReluDense.wo
        layer.weight.data.mul_(2e4)
        layer.register_forward_hook(lambda _, inputs, output: peaks.append(output.abs().max().item()))
    inputs = text.example_inputs(encoder, branches=2, text_tokens=9)
    expected = expected_embeds(encoder, inputs)
    with torch.no_grad():
        embeds = text.TextEncoder(encoder, torch.float16)(**inputs)
    assert max(peaks) > torch.finfo(torch.float16).max
    assert np.linalg.norm(embeds.numpy() - expected) / np.linalg.norm(expected) < 5e-2


def encoder_with_outliers() -> UMT5EncoderModel:
    """With the spread that UMT5 begins with, and as trained ones have them, hidden units far above the others."""
    torch.manual_seed(0)
    config = {"vocab_size": 50, "d_model": 96, "d_kv": 16, "d_ff": 192, "num_layers": 2, "num_heads": 6}
    encoder = UMT5EncoderModel(UMT5Config(**config, feed_forward_proj="gated-gelu")).eval()
    for block in encoder.encoder.block:
        layer = block.layer[1].DenseReluDense
        layer.wi_1.weight.data[7] *= 100
        layer.wo.weight.data[:, 7] /= 100
    return encoder


def test_int8_keeps_the_embeds_of_an_encoder_with_outliers(tmp_path: Path):
    """One scale for an activation would leave those beside an outlier nothing: 0.4 and more of error."""
    encoder = encoder_with_outliers()
    inputs = text.example_inputs(encoder, branches=2, text_tokens=45)
    expected = expected_embeds(encoder, inputs)
    errors = {}
    for name, passes in (("int8", int8_passes()), ("one digit", [DynamicInt8(text.QUANTIZABLE_WEIGHTS)])):
        embeds = run_graph(write_graph(encoder, tmp_path / name, passes=passes), inputs)
        errors[name] = np.linalg.norm(embeds - expected) / np.linalg.norm(expected)
    assert errors["int8"] < 0.05 and errors["one digit"] > 5 * errors["int8"]


def test_int8_holds_no_matrix_in_float32(tmp_path: Path):
    encoder = encoder_with_outliers()
    write_graph(encoder, tmp_path, passes=int8_passes())
    stored = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer
    wide = [tensor.name for tensor in stored if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1]
    assert all(name.startswith("bias_") for name in wide)  # by head and distance: small
    assert "stack.embed_tokens.weight.half" in [tensor.name for tensor in stored]


def test_an_encoder_without_gated_gelu_is_refused_with_what_is_supported():
    with pytest.raises(ValueError, match=r"'relu'.*Supported is 'gated-gelu'"):
        text.TextEncoder(random_encoder(feed_forward_proj="relu"))


def test_for_gpus_each_position_bias_waits_for_its_block(tmp_path: Path) -> None:
    """Else a compiler holds those of all blocks at once. The result is the same to the bit."""
    encoder = random_encoder()
    inputs = text.example_inputs(encoder, text_tokens=9)
    expected = run_graph(write_graph(encoder, tmp_path / "at_once"), inputs)
    graph = write_graph(encoder, tmp_path / "in_turn", passes=(bias_in_turn,))
    np.testing.assert_array_equal(run_graph(graph, inputs), expected)
    nodes = onnx.load(graph).graph.node
    producers = {output: node for node in nodes for output in node.output}
    lookups = [node for node in nodes if node.op_type == "Gather" and node.attribute and node.attribute[0].i == 1]
    layers = set()
    for node in lookups:
        while node.op_type != "MatMul":
            node = next(producers[name] for name in node.input if name in producers)
        layers.add(node.output[0])
    assert len(lookups) == len(layers) == 2


def test_both_types_for_gpus_look_them_up_in_turn() -> None:
    forms = next(source.forms for source in text_to_video(["fp8", "fp16"]) if source.role == "text_encoder")
    assert {form.precision: form.passes for form in forms} == {"bf16": (bias_in_turn,), "fp16": (bias_in_turn,)}
