"""Sizes that are counted from configurations, against files and engines that were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.model_sizes import lora_rows_of_a_block, sizes, weight_bytes
from benchmarks.real_sizes import MODELS, VAE_2_2, Model, configuration, cut_to

RESULTS = Path(__file__).parents[2] / "benchmarks/results"


def result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text("utf-8"))


def counted(model: str, component: str, precision: str) -> int:
    (row,) = (
        row
        for row in result("model_sizes.json")["rows"]
        if (row["model"], row["component"]) == (model, component)
    )  # fmt: skip
    return row["bytes"][precision]


def weights_of_engines(file: str) -> int:
    """Of all parts, for one size and one branch."""
    rows = result(f"engine_memory/{file}.json")["engines"]
    return sum(row["weight_bytes"] for row in rows if (row["shapes"], row["branches"]) == ("480x832x81", 1))


@pytest.mark.parametrize(
    ("model", "component", "precision", "file"),
    [
        ("1.3B", "transformer", "bf16", "1.3b_bf16_rtx40"),
        ("1.3B", "transformer", "fp8", "1.3b_fp8_rtx40"),
        ("1.3B", "transformer", "int8-static", "1.3b_int8-static_rtx30"),
        ("14B", "transformer", "fp8", "14b_parts_fp8_rtx40"),
        ("14B", "text_encoder", "bf16", "umt5-xxl_parts_bf16_rtx40"),
    ],
)
def test_counted_bytes_are_those_of_engines(model: str, component: str, precision: str, file: str) -> None:
    assert counted(model, component, precision) == pytest.approx(weights_of_engines(file), rel=0.001)


@pytest.mark.parametrize(
    "file",
    ["1.3b_4_blocks_fp8_rtx40", "14b_4_blocks_nvfp4_rtx50", "5b_2_blocks_bf16_rtx40", "5b_3_blocks_int8-static_rtx30"],
)
def test_counted_bytes_of_few_blocks_are_those_of_engines(file: str) -> None:
    made = result(f"engine_memory/{file}.json")
    found = weight_bytes(cut_to(MODELS[made["model"]], made["blocks"]), "transformer", made["precision"])
    assert found == pytest.approx(made["engines"][0]["weight_bytes"], rel=0.001)


def test_the_inputs_for_loras_of_two_blocks_are_what_engines_with_two_blocks_more_take() -> None:
    inputs = []
    for name in ("1.3b_2_blocks_bf16_rtx40", "1.3b_4_blocks_fp8_rtx40"):
        plain, changed = (result(f"engine_memory/{file}.json")["engines"][0] for file in (name, f"{name}_lora"))
        inputs.append(changed["buffer_bytes"] - plain["buffer_bytes"])
    assert inputs[1] - inputs[0] == 2 * lora_rows_of_a_block(MODELS["1.3B"]) * 64 * 2


def test_counted_bytes_are_those_of_files() -> None:
    exported = result("export_memory_wan14b.json")["file_bytes"]
    weights = sum(size for name, size in exported.items() if name.endswith(".data"))
    assert counted("14B", "transformer", "bf16") == pytest.approx(weights, rel=0.001)
    run = result("small_memory_run.json")["rows"][-1]["plan"]["memory"]
    for component, stage in (("text_encoder", "text_encoder"), ("transformer", "denoiser")):
        assert counted("1.3B", component, "int8") == pytest.approx(run[stage]["weight_bytes"], rel=0.001)


def test_every_model_was_counted() -> None:
    rows = result("model_sizes.json")["rows"]
    assert {(row["model"], row["component"]) for row in rows} == {
        (name, component) for name, model in MODELS.items() for component in model.networks()
    }


def test_the_configuration_is_written_as_a_checkpoint_has_it(tmp_path: Path) -> None:
    model = Model({"num_attention_heads": 2, "num_layers": 3}, VAE_2_2, experts=2)
    checkpoint = configuration(model, tmp_path / "given")
    depths = [len(checkpoint.without_weights(name).blocks) for name in ("transformer", "transformer_2")]
    assert depths == [3, 3]
    assert checkpoint.without_weights("vae").config.z_dim == model.latent_channels == 48


def test_the_first_blocks_of_a_model_with_control_keep_theirs_that_read_it(tmp_path: Path) -> None:
    checkpoint = configuration(cut_to(MODELS["VACE-1.3B"], 3), tmp_path / "given")
    transformer = checkpoint.without_weights("transformer")
    assert (len(transformer.blocks), len(transformer.vace_blocks)) == (3, 2)
    assert len(checkpoint.without_weights("text_encoder").encoder.block) == 3


def test_a_small_model_is_counted_to_the_last_number() -> None:
    (row,) = (
        row
        for row in sizes(Model({"num_attention_heads": 2, "ffn_dim": 16, "num_layers": 3}))
        if row["component"] == "transformer"
    )
    width, ffn, text = 256, 16, 4096
    linears = 8 * width * width + 2 * ffn * width  # of a block: weights that int8 quantizes
    outputs = 8 * width + ffn + width
    embedded = text * width + width * width, 2 * width  # of the text
    narrow = 3 * linears + embedded[0]
    scales = 3 * outputs + embedded[1]
    assert row["bytes"]["int8"] == 4 * row["parameters"] - 3 * narrow + 4 * scales
    assert row["bytes"]["bf16"] == 4 * row["parameters"] - 2 * (narrow + scales)  # a bias for each output
    kept_keys_and_values = 2 * width * width, 2 * width
    in_fp8 = linears - kept_keys_and_values[0], outputs - kept_keys_and_values[1]  # of the block in the middle
    assert row["bytes"]["fp8"] == row["bytes"]["bf16"] - in_fp8[0] + 2 * in_fp8[1]
    assert row["bytes"]["nvfp4"] == row["bytes"]["bf16"] - 2 * in_fp8[0] + in_fp8[0] // 2 + in_fp8[0] // 16


def test_the_blocks_that_read_the_control_and_their_projections_take_16_bits_too() -> None:
    config = {"num_attention_heads": 2, "ffn_dim": 16, "num_layers": 3, "vace_layers": [0, 2], "vace_in_channels": 96}
    model = Model(config, index={"_class_name": "WanVACEPipeline"})
    (row,) = (row for row in sizes(model) if row["component"] == "transformer")
    width, ffn, text = 256, 16, 4096
    block = 8 * (width * width + width) + 2 * ffn * width + ffn + width
    embedded = text * width + width + width * width + width
    projections = 3 * (width * width + width)  # from the first of the two, and to the network from both
    assert row["bytes"]["bf16"] == 4 * row["parameters"] - 2 * (5 * block + embedded + projections)
