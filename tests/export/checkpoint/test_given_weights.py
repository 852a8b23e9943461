"""Weights as people have them become those of the class, value by value; what cannot is refused with what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from mutoscope_export.checkpoint.given_weights import open_weights
from mutoscope_export.checkpoint.staging import stage
from mutoscope_export.errors import ExportError
from mutoscope_export.families.wan.original_names import original_name
from safetensors.torch import load_file, save_file
from torch import Tensor

NAMES = {"a.weight": "first.weight", "b.weight": "second.weight"}  # of the class, and of the authors
FP8 = torch.tensor([[1.5, -2.0], [0.25, 448.0]]).to(torch.float8_e4m3fn)
OTHER = torch.tensor([1.0, 2.0])


def written(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file(dict(tensors), folder / "x.safetensors")
    return folder / "x.safetensors"


def read(path: Path) -> dict[str, Tensor]:
    return {name: weight.read() for name, weight in open_weights(path, NAMES).weights.items()}


@pytest.fixture
def stored(wan_checkpoint: Path) -> dict[str, Tensor]:
    return load_file(wan_checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "somebody.s."])
def test_the_authors_layout_is_read_as_diffusers_reads_it(
    wan_checkpoint: Path, stored: dict[str, Tensor], tmp_path: Path, prefix: str
) -> None:
    path = written(tmp_path, {prefix + original_name(name): value for name, value in stored.items()})
    ours = open_weights(path, {name: original_name(name) for name in stored}).weights
    if prefix != "somebody.s.":  # which Diffusers does not take off
        theirs = WanTransformer3DModel.from_single_file(str(path), config=str(wan_checkpoint / "transformer"))
        stored = theirs.state_dict()
    assert ours.keys() == stored.keys()
    assert all(torch.equal(ours[name].read(), value) for name, value in stored.items())


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_the_layout_of_diffusers_is_read_from_one_file_too(
    stored: dict[str, Tensor], tmp_path: Path, prefix: str
) -> None:
    path = written(tmp_path, {prefix + name: value for name, value in stored.items()})
    ours = open_weights(path, {name: original_name(name) for name in stored}).weights
    assert ours.keys() == stored.keys()
    assert all(torch.equal(ours[name].read(), value) for name, value in stored.items())


@pytest.mark.parametrize("scale", [torch.tensor(0.3), torch.tensor([0.3]), torch.tensor([[0.3], [0.7]])])
@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
def test_a_scaled_weight_is_the_product_in_float32(tmp_path: Path, scale: Tensor, suffix: str) -> None:
    tensors = {"first.weight": FP8, f"first.{suffix}": scale, "second.weight": OTHER}
    path = written(tmp_path, {f"model.diffusion_model.{name}": value for name, value in tensors.items()})
    product = torch.tensor([[1.5, -2.0], [0.25, 448.0]]) * scale
    assert torch.equal(read(path)["a.weight"], product)
    assert torch.equal(read(path)["b.weight"], OTHER)


def test_what_only_comes_with_a_quantised_weight_is_no_weight(tmp_path: Path) -> None:
    said = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    path = written(
        tmp_path,
        {
            "first.weight": FP8, "first.weight_scale": torch.tensor(2.0), "first.input_scale": torch.tensor(9.0),
            "first.comfy_quant": said, "second.weight": OTHER, "scaled_fp8": torch.empty(2).to(torch.float8_e4m3fn),
        },
    )  # fmt: skip
    assert read(path).keys() == {"a.weight", "b.weight"}
    assert torch.equal(read(path)["a.weight"], 2 * FP8.float())


def test_fp8_without_scales_and_one_type_stay_narrow_and_mixed_types_become_float32(tmp_path: Path) -> None:
    halves = {"first.weight": FP8, "second.weight": OTHER.bfloat16()}
    weights = open_weights(written(tmp_path, halves), NAMES)
    assert weights.dtype == torch.bfloat16
    assert torch.equal(weights.weights["a.weight"].read().float(), FP8.float())
    assert open_weights(written(tmp_path, halves | {"first.weight": OTHER.half()}), NAMES).dtype == torch.float32


def test_an_index_names_all_files(tmp_path: Path) -> None:
    save_file({"first.weight": OTHER}, tmp_path / "x-00001-of-00002.safetensors")
    save_file({"second.weight": -OTHER}, tmp_path / "x-00002-of-00002.safetensors")
    listed = {"first.weight": "x-00001-of-00002.safetensors", "second.weight": "x-00002-of-00002.safetensors"}
    index = tmp_path / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": listed}))
    assert torch.equal(read(index)["b.weight"], -OTHER)
    with pytest.raises(ExportError, match=r"one of several files\. Name their index, x\.safetensors\.index\.json"):
        read(tmp_path / "x-00001-of-00002.safetensors")
    (tmp_path / "x-00002-of-00002.safetensors").unlink()
    with pytest.raises(ExportError, match=r"lacks x-00002-of-00002\.safetensors, which x\.safetensors\.index\.json"):
        read(index)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("x.gguf", b"", "is a GGUF file"),
        ("x.safetensors", b"GGUF\3\0\0\0", "is a GGUF file"),
        ("x.pth", b"", "is a pickle"),
        ("x.safetensors", b"PK\3\4", "is a pickle"),
        ("x", b"\x80\2}q", "is a pickle"),
        ("x.safetensors", b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("x.safetensors", b"what is this", "no safetensors file, or damaged"),
    ],
)
def test_a_file_of_another_format_is_refused_by_its_name(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExportError, match=said):
        read(tmp_path / name)


def text(content: str) -> Tensor:
    return torch.tensor(list(content.encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    "tensors, said",
    [
        ({"first.weight": FP8, "first.weight_scale": torch.ones(1, 3)}, r"weight_scale as F32 \[1, 3\]; a scale"),
        ({"first.weight": FP8, "first.weight_scale": torch.ones(2, 2)}, "a scale is one number"),
        ({"first.weight_scale": torch.ones(1)}, r"first\.weight_scale and not first\.weight"),
        ({"first.weight": FP8, "scaled_fp8": torch.ones(2)}, r"1 of them have no scale \(first\.weight\)"),
        ({"first.weight": FP8, "first.comfy_quant": text('{"format": "nvfp4"}')}, "quantised as 'nvfp4'"),
        ({"first.weight": FP8, "first.comfy_quant": text("{")}, "comfy_quant is damaged"),
        ({"first.weight": torch.ones(2, dtype=torch.int8)}, "weights in I8; supported: BF16, F16, F32, F8_"),
    ],
)  # fmt: skip
def test_weights_that_are_quantised_in_another_way_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor], said: str
) -> None:
    with pytest.raises(ExportError, match=said):
        read(written(tmp_path, tensors))


def test_what_is_staged_is_what_the_library_reads(tmp_path: Path) -> None:
    path = written(tmp_path, {"first.weight": FP8, "first.scale_weight": torch.tensor(0.3), "second.weight": OTHER})
    (tmp_path / "config.json").write_text("{}")
    weights = open_weights(path, NAMES)
    folder = stage(tmp_path / "config.json", weights, tmp_path / "new")
    found = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert (folder / "config.json").read_text() == "{}"
    assert found.keys() == weights.weights.keys()
    assert all(torch.equal(found[name], weight.read()) for name, weight in weights.weights.items())
