"""A merged LoRA gives the weights that PEFT and Diffusers give, and where those drop keys, W + s*B*A."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from mutoscope_engines.lora_file import read_lora
from mutoscope_export.checkpoint.merging import FittingLora, merging
from mutoscope_export.families.wan.original_names import original_name
from safetensors.torch import save_file
from torch import Tensor

from tests.loras import a_lora, linears

STRENGTH = 0.7


@pytest.fixture(scope="module")
def transformer(wan_checkpoint: Path) -> WanTransformer3DModel:
    return WanTransformer3DModel.from_pretrained(wan_checkpoint / "transformer")


def merged(transformer: Any, *files: tuple[Path, float]) -> dict[str, Tensor]:
    weights = transformer.state_dict()
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    names = {name: original_name(name) for name in shapes}
    change = merging([FittingLora(read_lora(path, shapes, names), strength) for path, strength in files])
    return {name: change(name, weight) for name, weight in weights.items()}


def fused(wan_checkpoint: Path, path: Path) -> dict[str, Tensor]:
    """What Diffusers and PEFT make of the file."""
    transformer = WanTransformer3DModel.from_pretrained(wan_checkpoint / "transformer")
    pipeline = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=transformer)
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    pipeline.fuse_lora(components=["transformer"], lora_scale=STRENGTH)
    pipeline.unload_lora_weights()
    weights: dict[str, Tensor] = transformer.state_dict()
    return weights


@pytest.mark.parametrize("spelling, alpha", [("peft", None), ("peft", 6.0), ("original", 2.0), ("kohya", 2.0)])
def test_the_weights_are_those_that_diffusers_and_peft_fuse(
    wan_checkpoint: Path, transformer: Any, tmp_path: Path, spelling: str, alpha: float | None
) -> None:
    pytest.importorskip("peft")
    path = a_lora(transformer, tmp_path / "l.safetensors", spelling=spelling, alpha=alpha, size=1.0)
    ours, theirs = merged(transformer, (path, STRENGTH)), fused(wan_checkpoint, path)
    assert ours.keys() == theirs.keys()
    before = transformer.state_dict()
    for name, weight in theirs.items():
        assert torch.allclose(ours[name], weight, rtol=1e-5, atol=1e-5), name
    changed = {name.removesuffix(".weight") for name, weight in ours.items() if not torch.equal(weight, before[name])}
    assert changed == set(linears(transformer))


def test_differences_and_several_files_add_up_in_any_type(transformer: Any, tmp_path: Path) -> None:
    """Biases, norms, modulation and the patch embedding, which Diffusers drops or refuses."""
    torch.manual_seed(4)
    before: dict[str, Tensor] = {name: weight.double() for name, weight in transformer.state_dict().items()}
    names = {
        "head.head.diff": "proj_out.weight",
        "blocks.0.norm3.diff": "blocks.0.norm2.weight",
        "blocks.0.norm3.diff_b": "blocks.0.norm2.bias",
        "blocks.1.diff_m": "blocks.1.scale_shift_table",
        "head.diff_m": "scale_shift_table",
        "time_projection.1.diff_b": "condition_embedder.time_proj.bias",
    }
    tensors = {f"diffusion_model.{key}": torch.randn(before[name].shape).bfloat16() for key, name in names.items()}
    patch = before["patch_embedding.weight"]
    down, up = torch.randn(2, *patch.shape[1:]).half(), torch.randn(patch.shape[0], 2, 1, 1, 1).half()
    tensors |= {"patch_embedding.lora_down.weight": down, "patch_embedding.lora_up.weight": up}
    tensors["patch_embedding.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "one.safetensors")
    second = torch.randn(before["proj_out.weight"].shape, dtype=torch.float64)
    save_file({"proj_out.diff": second}, tmp_path / "two.safetensors")
    ours = merged(transformer, (tmp_path / "one.safetensors", 0.5), (tmp_path / "two.safetensors", -2.0))
    expected = before | {
        name: before[name] + 0.5 * tensors[f"diffusion_model.{key}"].double() for key, name in names.items()
    }
    expected["proj_out.weight"] = expected["proj_out.weight"] - 2 * second
    product = torch.einsum("or,rchwd->ochwd", up.double()[:, :, 0, 0, 0], down.double())
    expected["patch_embedding.weight"] = patch + 0.5 * (1 / 2) * product
    assert all(torch.allclose(ours[name].double(), value, atol=1e-5) for name, value in expected.items())
    assert all(weight.dtype == torch.float32 for weight in ours.values())
