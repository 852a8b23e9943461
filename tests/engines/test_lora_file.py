"""Every spelling of a LoRA is understood as the same changes; what does not fit is refused with counts and reasons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope_engines.errors import GraphError
from mutoscope_engines.lora_file import Difference, LowRank, read_lora
from safetensors.numpy import save_file

PARAMETERS = {
    "patch_embedding.weight": (4, 3, 1, 2, 2),
    "blocks.0.attn1.to_q.weight": (4, 6),
    "blocks.0.attn1.to_q.bias": (4,),
    "blocks.0.attn1.norm_q.weight": (4,),
    "blocks.0.scale_shift_table": (1, 6, 4),
    "scale_shift_table": (1, 2, 4),
}
ORIGINAL = {
    "patch_embedding.weight": "patch_embedding.weight",
    "blocks.0.attn1.to_q.weight": "blocks.0.self_attn.q.weight",
    "blocks.0.attn1.to_q.bias": "blocks.0.self_attn.q.bias",
    "blocks.0.attn1.norm_q.weight": "blocks.0.self_attn.norm_q.weight",
    "blocks.0.scale_shift_table": "blocks.0.modulation",
    "scale_shift_table": "head.modulation",
}
Q = "blocks.0.attn1.to_q"
DOWN, UP = np.ones((2, 6), np.float32), np.ones((4, 2), np.float32)


def changes(folder: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> Any:
    save_file({name: np.asarray(value) for name, value in tensors.items()}, folder / "l.safetensors", metadata)
    return read_lora(folder / "l.safetensors", PARAMETERS, ORIGINAL).changes


@pytest.mark.parametrize(
    "stem, down, up",
    [
        (f"transformer.{Q}", "lora_A.weight", "lora_B.weight"),
        (Q, "lora_A.default.weight", "lora_B.default.weight"),
        (f"base_model.model.{Q}", "lora_A.weight", "lora_B.weight"),
        ("diffusion_model.blocks.0.self_attn.q", "lora_A.weight", "lora_B.weight"),
        ("model.diffusion_model.blocks.0.self_attn.q", "lora_down.weight", "lora_up.weight"),
        ("pipe.dit.blocks.0.self_attn.q", "lora_A.default.weight", "lora_B.default.weight"),
        ("lora_unet_blocks_0_self_attn_q", "lora_down.weight", "lora_up.weight"),
        ("lora_unet_blocks_0.self_attn.q", "lora_down.weight", "lora_up.weight"),
        ("lora_unet_blocks_0_attn1_to_q", "lora.down.weight", "lora.up.weight"),
    ],
)
def test_a_linear_is_found_under_every_name_that_trainers_give_it(
    tmp_path: Path, stem: str, down: str, up: str
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    found = changes(tmp_path, {f"{stem}.{down}": DOWN, f"{stem}.{up}": UP})
    assert found == (LowRank(f"{Q}.weight", f"{stem}.{down}", f"{stem}.{up}", 1.0),)


def test_everything_that_a_distillation_changes_is_found(tmp_path: Path) -> None:
    original = "diffusion_model.blocks.0"
    tensors = {
        "diffusion_model.patch_embedding.lora_down.weight": np.ones((2, 3, 1, 2, 2)),
        "diffusion_model.patch_embedding.lora_up.weight": np.ones((4, 2, 1, 1, 1)),
        f"{original}.self_attn.q.diff": np.ones((4, 6)),
        f"{original}.self_attn.q.diff_b": np.ones(4),
        f"{original}.self_attn.norm_q.diff": np.ones(4),
        f"{original}.diff_m": np.ones((1, 6, 4)),
        "diffusion_model.head.diff_m": np.ones((1, 2, 4)),
    }
    found = changes(tmp_path, tensors)
    assert [each.parameter for each in found if isinstance(each, LowRank)] == ["patch_embedding.weight"]
    differences = [each for each in found if isinstance(each, Difference)]
    assert {(each.parameter, each.name) for each in differences} == {
        (f"{Q}.weight", f"{original}.self_attn.q.diff"),
        (f"{Q}.bias", f"{original}.self_attn.q.diff_b"),
        ("blocks.0.attn1.norm_q.weight", f"{original}.self_attn.norm_q.diff"),
        ("blocks.0.scale_shift_table", f"{original}.diff_m"),
        ("scale_shift_table", "diffusion_model.head.diff_m"),
    }
    assert all(each.scale == 1 for each in differences)


@pytest.mark.parametrize("stem", ["blocks.0.modulation.diff", "blocks.0.modulation.diff_m", "blocks_0_modulation.diff"])
def test_a_modulation_may_be_named_itself(tmp_path: Path, stem: str) -> None:
    assert changes(tmp_path, {stem: np.ones((1, 6, 4))}) == (Difference("blocks.0.scale_shift_table", stem),)


@pytest.mark.parametrize("alpha", [np.float32(3), np.float16([3]), np.float64(3)])
def test_alpha_over_rank_is_the_scale(tmp_path: Path, alpha: Any) -> None:
    halves = {f"{Q}.lora_A.weight": DOWN, f"{Q}.lora_B.weight": UP, f"{Q}.alpha": alpha}
    assert changes(tmp_path, halves)[0].scale == 1.5


@pytest.mark.parametrize(
    "said, scale",
    [
        ({"lora_alpha": 6}, 3.0),
        ({"lora_alpha": 6, "use_rslora": True}, 6 / 2**0.5),
        ({"lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 1}}, 0.5),
        ({"lora_alpha": 6, "alpha_pattern": {"n1.to_q": 1, "blocks.*to_k": 1}}, 3.0),
        ({"r": 2}, 1.0),
        ({"lora_alpha": 6, "alpha_pattern": {".*attn1.*q": 1}}, 0.5),
    ],
)
def test_what_peft_notes_is_the_scale_in_the_file_or_beside_it(
    tmp_path: Path, said: dict[str, Any], scale: float
) -> None:
    halves = {f"{Q}.lora_A.weight": DOWN, f"{Q}.lora_B.weight": UP, f"{Q}.lora_B.bias": np.ones(4)}
    noted = json.dumps({f"transformer.{key}": value for key, value in said.items()})
    assert [each.scale for each in changes(tmp_path, halves, {"lora_adapter_metadata": noted})] == [scale, scale]
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    saved_by_peft = {f"base_model.model.{name}": value for name, value in halves.items()}
    assert [each.scale for each in changes(tmp_path, saved_by_peft)] == [scale, scale]


def test_a_pattern_of_alphas_is_for_the_names_that_the_file_has(tmp_path: Path) -> None:
    stem = "blocks.0.self_attn.q"
    halves = {f"diffusion_model.{stem}.lora_A.weight": DOWN, f"diffusion_model.{stem}.lora_B.weight": UP}
    noted = json.dumps({"lora_alpha": 6, "alpha_pattern": {"self_attn.q": 1}})
    assert [each.scale for each in changes(tmp_path, halves, {"lora_adapter_metadata": noted})] == [0.5]


def test_a_block_with_a_number_of_thousands_of_digits_is_refused_in_words(tmp_path: Path) -> None:
    stem = f"blocks.{'9' * 5000}.attn1.to_q"
    with pytest.raises(GraphError, match="are for parameters that this network lacks"):
        changes(tmp_path, {f"{stem}.lora_A.weight": DOWN, f"{stem}.lora_B.weight": UP})


@pytest.mark.parametrize(
    "said, because",
    [
        ({"use_dora": True}, "is a DoRA"),
        ({"lora_alpha": "x"}, "is damaged"),
        ({"lora_alpha": float("nan")}, "an alpha is not finite"),
        ({"alpha_pattern": {"(a+)+": 1}}, "more than a plain pattern"),
        ({"alpha_pattern": {".*.*.*x": 1}}, "more than a plain pattern"),  # each more takes many times as long
        ({"alpha_pattern": {"*": 1}}, "is damaged"),
        ([], "is damaged"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused(tmp_path: Path, said: Any, because: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    stem = f"base_model.model.{Q}"
    with pytest.raises(GraphError, match=because):
        changes(tmp_path, {f"{stem}.lora_A.weight": DOWN, f"{stem}.lora_B.weight": UP})


def test_a_file_of_peft_without_its_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"adapter_config\.json, which has its alpha, is not beside it"):
        changes(tmp_path, {f"base_model.model.{Q}.lora_A.weight": DOWN})


PAIR = {f"{Q}.lora_A.weight": DOWN, f"{Q}.lora_B.weight": UP}


@pytest.mark.parametrize(
    "tensors, said",
    [
        (
            PAIR | {"blocks.0.cross_attn.k_img.lora_down.weight": DOWN, "blocks.0.cross_attn.norm_k_img.diff": DOWN},
            r"2 of its 4 tensors do, and of the others 2 are for layers that read a picture",
        ),
        (PAIR | {"blocks.30.attn1.to_q.lora_A.weight": DOWN}, "1 are for blocks from 1 on, and this network has 1"),
        (PAIR | {"lora_te1_x.lora_down.weight": DOWN}, "for a text encoder"),
        (PAIR | {f"transformer_2.{Q}.lora_A.weight": DOWN}, "for the second transformer"),
        (PAIR | {"nothing.diff_b": DOWN}, "for parameters that this network lacks"),
        (PAIR | {"nothing.diff_m": DOWN}, "for parameters that this network lacks"),
        (PAIR | {"blocks.0.attn1.norm_q.diff_b": DOWN}, "for parameters that this network lacks"),
        (PAIR | {f"{Q}.dora_scale": DOWN}, "of another method than LoRA"),
        (PAIR | {f"{Q}.lokr_w1": DOWN}, "of another method than LoRA"),
        (PAIR | {"anything": DOWN}, "1 are of no known kind"),
        (PAIR | {f"{Q}.lora_A.style.weight": DOWN}, "are a second LoRA in the same file"),
        (PAIR | {f"transformer.{Q}.lora_A.weight": DOWN, f"transformer.{Q}.lora_B.weight": UP}, "say a second time"),
        (PAIR | {f"{Q}.diff": DOWN}, "1 have other sizes"),
        (PAIR | {f"{Q}.alpha": np.ones(2)}, "not a finite number"),
        (PAIR | {f"{Q}.alpha": np.float32("inf")}, "not a finite number"),
        (PAIR | {f"{Q}.lora_A.weight": np.ones((2, 5))}, "2 have other sizes"),
        (PAIR | {f"{Q}.lora_B.weight": np.ones((4, 3)), f"{Q}.alpha": np.ones(1)}, "3 have other sizes"),
        ({f"{Q}.lora_A.weight": np.ones((0, 6)), f"{Q}.lora_B.weight": np.ones((4, 0))}, "2 have other sizes"),
        ({"blocks.0.attn1.norm_q.lora_A.weight": DOWN, "blocks.0.attn1.norm_q.lora_B.weight": UP}, "2 have other siz"),
        ({f"{Q}.lora_A.weight": DOWN, f"{Q}.alpha": np.ones(1)}, "0 of its 2 tensors do, .* 2 lack their other half"),
        ({f"{Q}.diff": np.ones((4, 6), np.int8)}, "1 have the type I8"),
        ({}, "changes nothing"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_counts(tmp_path: Path, tensors: dict[str, Any], said: str) -> None:
    with pytest.raises(GraphError, match=said):
        changes(tmp_path, tensors)
