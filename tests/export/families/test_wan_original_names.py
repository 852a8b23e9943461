"""The names are those that Diffusers' own reader of single files knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from mutoscope_export.families.wan.original_names import original_name

OF_TEXT: dict[str, Any] = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 40}
OF_CONTROL = OF_TEXT | {"vace_layers": [0, 1]}
OF_PICTURES = OF_TEXT | {"image_dim": 16, "added_kv_proj_dim": 24}


@pytest.mark.parametrize("config", [OF_TEXT, OF_PICTURES, OF_CONTROL], ids=["text", "pictures", "control"])
def test_diffusers_makes_of_every_original_name_the_one_it_was_made_from(config: dict[str, Any]) -> None:
    kind: Any = WanVACETransformer3DModel if "vace_layers" in config else WanTransformer3DModel
    with torch.device("meta"):
        names = list(kind(**config).state_dict())
    originals = {original_name(name): name for name in names if "norm_added_q" not in name}  # which no file has
    assert originals == {original: original_back(original) for original in originals}
    assert sum(original != name for original, name in originals.items()) > 0.9 * len(originals)


def original_back(original: str) -> str:
    (name,) = convert_wan_transformer_to_diffusers({original: None})
    return str(name)


@pytest.mark.parametrize(
    "name, original",
    [
        ("blocks.10.attn2.to_out.0.bias", "blocks.10.cross_attn.o.bias"),
        ("blocks.0.norm2.weight", "blocks.0.norm3.weight"),
        ("blocks.0.scale_shift_table", "blocks.0.modulation"),
        ("scale_shift_table", "head.modulation"),
        ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),  # Diffusers' reader does not know it
        ("patch_embedding.weight", "patch_embedding.weight"),
    ],
)
def test_a_module_in_another_place_of_the_name_is_not_taken_for_it(name: str, original: str) -> None:
    assert original_name(name) == original
