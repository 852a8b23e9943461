"""Parts from elsewhere and LoRAs become the weights that are exported, or are refused before a weight is read."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from mutoscope.errors import RequestError
from mutoscope_export.checkpoint.replacements import replacements
from mutoscope_export.errors import ExportError
from mutoscope_export.families.wan.original_names import original_name
from mutoscope_export.families.wan.random_checkpoint import add_expert
from mutoscope_export.opening import OpenedCheckpoint, open_checkpoint, with_staged_weights
from safetensors.torch import load_file, save_file
from torch import Tensor


def opened(
    checkpoint: Path,
    *transformers: Path,
    vae: Path | None = None,
    text_encoder: Path | None = None,
    lora: Sequence[str] = (),
    lora_2: Sequence[str] = (),
) -> OpenedCheckpoint:
    others = {"vae": vae and str(vae), "text_encoder": text_encoder and str(text_encoder)}
    return open_checkpoint(checkpoint, replacements(tuple(map(str, transformers)), others, (lora, lora_2)))


def weights_of(checkpoint: Path, component: str = "transformer") -> dict[str, Tensor]:
    return load_file(checkpoint / component / "diffusion_pytorch_model.safetensors")


def original_file(path: Path, weights: dict[str, Tensor]) -> Path:
    save_file({f"model.diffusion_model.{original_name(name)}": value for name, value in weights.items()}, path)
    return path


def loaded(found: OpenedCheckpoint, folder: Path, component: str = "transformer") -> dict[str, Tensor]:
    staged = with_staged_weights(found, folder / "staged", lambda _: None)
    weights: dict[str, Tensor] = staged.load(component).state_dict()
    return weights


def test_a_file_takes_the_place_of_weights_that_need_not_be_there(copy: Path, tmp_path: Path) -> None:
    weights = {name: -value for name, value in weights_of(copy).items()}
    path = original_file(tmp_path / "mine.safetensors", weights)
    (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    found = opened(copy, path)
    assert {name for name in found.sha256_of_files() if name.startswith("transformer/")} == {
        "transformer/config.json", "transformer/mine.safetensors",
    }  # fmt: skip
    assert all(torch.equal(value, weights[name]) for name, value in loaded(found, tmp_path).items())


def test_the_first_file_is_for_the_first_steps(copy: Path, tmp_path: Path) -> None:
    add_expert(copy, 0.875)
    high = {name: value + 1 for name, value in weights_of(copy).items()}
    low = {name: value + 2 for name, value in high.items()}
    paths = [original_file(tmp_path / f"{number}.safetensors", each) for number, each in enumerate((high, low))]
    lora = tmp_path / "l.safetensors"
    save_file({"proj_out.diff_b": torch.ones_like(high["proj_out.bias"])}, lora)
    found = opened(copy, *paths, lora=[f"{lora}:0.5"], lora_2=[str(lora)])
    staged = with_staged_weights(found, tmp_path / "staged", lambda _: None)
    for component, weights, strength in (("transformer", high, 0.5), ("transformer_2", low, 1.0)):
        result = staged.load(component).state_dict()
        assert torch.equal(result["proj_out.bias"], weights["proj_out.bias"] + strength)
        assert torch.equal(result["proj_out.weight"], weights["proj_out.weight"])


def test_parts_come_from_other_folders(copy: Path, wan_checkpoint: Path, tmp_path: Path) -> None:
    for component in ("vae", "text_encoder", "transformer"):
        shutil.rmtree(copy / component)
    found = opened(
        copy,
        wan_checkpoint / "transformer",
        vae=wan_checkpoint,
        text_encoder=wan_checkpoint / "text_encoder",
    )
    assert found.folder("vae") == wan_checkpoint / "vae"
    assert found.sha256_of_files() == open_checkpoint(wan_checkpoint).sha256_of_files()
    assert with_staged_weights(found, tmp_path / "staged", lambda _: None).load("vae")
    assert not (tmp_path / "staged").exists()


def test_a_lora_changes_the_checkpoints_own_weights_and_a_colon_in_its_name_is_no_strength(
    wan_checkpoint: Path, tmp_path: Path
) -> None:
    weights = weights_of(wan_checkpoint)
    lora = tmp_path / "a:2.safetensors"
    save_file({"diffusion_model.head.head.diff_b": torch.ones_like(weights["proj_out.bias"])}, lora)
    for given, strength in ((str(lora), 1.0), (f"{lora}:-0.5", -0.5)):
        found = opened(wan_checkpoint, lora=[given])
        result = loaded(found, tmp_path / f"{strength}")
        assert found.loras["transformer"][0].strength == strength
        assert torch.equal(result.pop("proj_out.bias"), weights["proj_out.bias"] + strength)
        assert all(torch.equal(value, weights[name]) for name, value in result.items())


def test_what_does_not_fit_is_refused_by_name_and_with_counts(wan_checkpoint: Path, tmp_path: Path) -> None:
    weights = weights_of(wan_checkpoint)
    fewer = {name: value for name, value in weights.items() if "blocks.1." not in name}
    with pytest.raises(ExportError, match=r"x\.safetensors is not for the transformer .* lacks 27 weights"):
        opened(wan_checkpoint, original_file(tmp_path / "x.safetensors", fewer))
    image = {f"blocks.{number}.attn2.add_k_proj.weight": torch.ones(1) for number in range(2)}
    with pytest.raises(ExportError, match=r"2 weights \(blocks\.0\.cross_attn\.k_img\.weight, "):
        opened(wan_checkpoint, original_file(tmp_path / "y.safetensors", weights | image))
    other = weights | {"proj_out.bias": torch.ones(1)}
    with pytest.raises(ExportError, match=r"1 weight \(proj_out\.bias\) in shapes that differ"):
        opened(wan_checkpoint, original_file(tmp_path / "z.safetensors", other))
    save_file({"blocks.0.attn1.to_q.diff_b": torch.ones(1)}, tmp_path / "l.safetensors")
    with pytest.raises(ExportError, match=r"l\.safetensors does not fit: 0 of its 1 tensors do"):
        opened(wan_checkpoint, lora=[str(tmp_path / "l.safetensors")])


def test_what_there_is_no_place_for_is_refused(wan_checkpoint: Path, tmp_path: Path) -> None:
    path = original_file(tmp_path / "x.safetensors", weights_of(wan_checkpoint))
    with pytest.raises(ExportError, match="has no transformer_2, which something was given for"):
        opened(wan_checkpoint, path, path)
    with pytest.raises(ExportError, match="has no transformer_2, which something was given for"):
        opened(wan_checkpoint, lora_2=[str(path)])
    with pytest.raises(ExportError, match="the vae is read from a folder in the Diffusers layout"):
        opened(wan_checkpoint, vae=path)
    with pytest.raises(ExportError, match="is a pickle"):
        (tmp_path / "vae.pth").touch()
        opened(wan_checkpoint, vae=tmp_path / "vae.pth")
    with pytest.raises(ExportError, match=r"is no folder of a vae: it has no config\.json"):
        opened(wan_checkpoint, vae=tmp_path)
    with pytest.raises(ExportError, match="there is no file"):
        opened(wan_checkpoint, lora=["missing.safetensors:0.5"])
    with pytest.raises(RequestError, match=r"lora_2 must be FILE or FILE:STRENGTH, .* got '.*:strong'"):
        opened(wan_checkpoint, lora_2=[f"{path}:strong"])
    with pytest.raises(RequestError, match="lora must be FILE or FILE:STRENGTH"):
        opened(wan_checkpoint, lora=["any:nan"])
    with pytest.raises(RequestError, match="a tuple of one or two files"):
        opened(wan_checkpoint, path, path, path)
