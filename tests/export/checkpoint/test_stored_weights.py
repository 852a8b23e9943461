"""Which weight files are read, and what is said of them before any weight is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from mutoscope_export.errors import ExportError
from mutoscope_export.families.wan.random_checkpoint import random_checkpoint
from mutoscope_export.opening import open_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.export.spoiling import edit

WEIGHTS = {
    "text_encoder": "text_encoder/model.safetensors",
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}


def rewrite(file: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, file, {"format": "pt"})


def test_files_that_are_missing_or_damaged_are_refused(copy: Path) -> None:
    weights = copy / WEIGHTS["vae"]
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ExportError, match=r"vae/diffusion_pytorch_model\.safetensors is damaged"):
        open_checkpoint(copy)
    weights.unlink()
    with pytest.raises(ExportError, match=r"vae has no diffusion_pytorch_model\.safetensors\. Get the complete"):
        open_checkpoint(copy)


@pytest.mark.parametrize("component", WEIGHTS)
def test_weights_that_are_not_exactly_those_of_the_class_are_refused(copy: Path, component: str) -> None:
    file = copy / WEIGHTS[component]
    weights = load_file(file)
    name = next(name for name in sorted(weights) if name.startswith(("blocks.1", "decoder", "encoder.block.1")))
    others = {other: value for other, value in weights.items() if other != name}
    for changed, message in (
        (others, rf"{component} lacks 1 weight \({re.escape(name)}\)\. Get the complete checkpoint again"),
        (
            {**weights, "x": torch.zeros(1)},
            rf"{component} has weights that its class, \w+, does not use: 1 weight \(x\)\. A video without",
        ),
        ({**weights, name: torch.zeros(3, 5, 7)}, rf"has 1 weight \({re.escape(name)}\) in shapes that differ"),
        (
            {**others, "x": torch.zeros(1)},
            r"does not have the weights of \w+: it lacks 1 weight .*, and has 1 weight \(x\) inst",
        ),
    ):
        rewrite(file, changed)
        with pytest.raises(ExportError, match=message):
            open_checkpoint(copy)


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("_orig_mod.", "as torch.compile names them. Save it again"),
        ("module.", "as DistributedDataParallel names them. Save it again"),
        ("model.diffusion_model.", "as single-file checkpoints name them. Save it again"),
        ("model.diffusion_model.net.", "which its class does not use"),
    ],
)
def test_a_prefix_of_all_names_is_named(copy: Path, prefix: str, message: str) -> None:
    file = copy / WEIGHTS["transformer"]
    rewrite(file, {prefix + name: weight for name, weight in load_file(file).items()})
    with pytest.raises(ExportError, match=rf"transformer have '{re.escape(prefix)}' in their names, {message}"):
        open_checkpoint(copy)


def test_blocks_that_were_compiled_one_by_one_are_told(copy: Path) -> None:
    file = copy / WEIGHTS["transformer"]
    weights = {re.sub(r"^(blocks\.\d+)", r"\1._orig_mod", name): weight for name, weight in load_file(file).items()}
    rewrite(file, weights)
    with pytest.raises(ExportError, match=r"'_orig_mod\.' in their names, as torch.compile names them"):
        open_checkpoint(copy)


def test_names_of_another_layout_are_told_how_to_convert(copy: Path) -> None:
    file = copy / WEIGHTS["transformer"]
    original = {f"model.diffusion_model.x{i}": value for i, value in enumerate(load_file(file).values())}
    rewrite(file, original)
    with pytest.raises(
        ExportError, match=r"Load the file with WanTransformer3DModel\.from_single_file and save it again"
    ):
        open_checkpoint(copy)


def test_gates_of_sparse_attention_are_refused_with_the_reason(copy: Path) -> None:
    file = copy / WEIGHTS["transformer"]
    gates = {
        f"blocks.{block}.to_gate_compress.{kind}": torch.zeros(24) for block in (0, 1) for kind in ("weight", "bias")
    }
    rewrite(file, {**load_file(file), **gates})
    with pytest.raises(
        ExportError, match=r"4 weights \(blocks\.0\.to_gate.* and 1 more\)\. .*FastVideo's sparse attention"
    ):
        open_checkpoint(copy)


@pytest.mark.parametrize("names", [("shared",), ("encoder.embed_tokens",), ("shared", "encoder.embed_tokens")])
@pytest.mark.parametrize("tied", [True, False])
def test_the_embedding_may_have_either_of_its_names(copy: Path, names: tuple[str, ...], tied: bool) -> None:
    file = copy / WEIGHTS["text_encoder"]
    weights = load_file(file)
    embedding = weights.pop("shared.weight")
    rewrite(file, {**weights, **{f"{name}.weight": embedding.clone() for name in names}})
    edit(copy / "text_encoder/config.json", lambda config: config.update(tie_word_embeddings=tied))
    loaded = open_checkpoint(copy).load("text_encoder")
    assert torch.equal(loaded.encoder.embed_tokens.weight, embedding)


def test_the_encoder_of_a_larger_model_may_have_its_prefix_as_transformers_allows(copy: Path) -> None:
    file = copy / WEIGHTS["text_encoder"]
    weights = load_file(file)
    rewrite(file, {f"transformer.{name}": weight for name, weight in weights.items()})
    loaded = open_checkpoint(copy).load("text_encoder").state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.float8_e4m3fn, "F8_E4M3; supported: BF16, F16, F32. .* not quantized"),
        (torch.int8, "I8; supported: .* not quantized"),
        (torch.float64, r"F64; supported: .* Save it again in one of these, such as with model\.to\(torch\.float32\)"),
        (torch.int64, "I64; supported: .* Save it again"),
    ],
)
def test_weights_in_a_type_that_is_not_read_are_refused(copy: Path, dtype: torch.dtype, message: str) -> None:
    file = copy / WEIGHTS["vae"]
    rewrite(file, {name: value.to(dtype) for name, value in load_file(file).items()})
    with pytest.raises(ExportError, match=f"vae has weights in {message}"):
        open_checkpoint(copy)


def test_only_the_files_that_a_library_reads_are_judged_and_hashed(copy: Path) -> None:
    expected = set(open_checkpoint(copy).sha256_of_files())
    for name, content in (
        ("._diffusion_pytorch_model.safetensors", b"\0\5\x16\7 of macOS"),
        ("diffusion_pytorch_model.fp16.safetensors", b""),
        ("lora.safetensors", b"damaged"),
    ):
        (copy / "transformer" / name).write_bytes(content)
    rewrite(copy / "vae" / "indices.safetensors", {"x": torch.zeros(1, dtype=torch.int64)})
    assert set(open_checkpoint(copy).sha256_of_files()) == expected


@pytest.mark.parametrize("component", WEIGHTS)
def test_a_variant_alone_is_named(copy: Path, component: str) -> None:
    file = copy / WEIGHTS[component]
    file.rename(file.with_suffix(".fp16.safetensors"))
    message = rf"{component} has its weights only as the variant {file.stem}\.fp16\.safetensors.*variant='fp16'"
    with pytest.raises(ExportError, match=message):
        open_checkpoint(copy)


def test_weights_under_another_name_are_not_taken(copy: Path) -> None:
    file = copy / WEIGHTS["vae"]
    file.rename(file.with_name("vae.safetensors"))
    with pytest.raises(
        ExportError, match=r"no diffusion_pytorch_model\.safetensors; export does not read vae\.safetensors\. Rename"
    ):
        open_checkpoint(copy)


@pytest.mark.parametrize("name", ["vae/diffusion_pytorch_model.safetensors", "vae/config.json", "model_index.json"])
def test_a_pointer_of_git_lfs_is_told(copy: Path, name: str) -> None:
    (copy / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n")
    with pytest.raises(ExportError, match=rf"{name} is a Git LFS pointer .*git lfs pull"):
        open_checkpoint(copy)


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "sharded", max_shard_size="20KB") / "transformer"
    *_, last = sorted(folder.glob("*.safetensors"))
    last.unlink()
    with pytest.raises(ExportError, match=rf"transformer lacks {last.name}, which .*index\.json lists"):
        open_checkpoint(folder.parent)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    for damaged, message in (
        ({"weight_map": {}}, "lists nothing"),
        ([], "lists no weights"),
        ({"weight_map": {"x": 1}}, "lists no weights: .*int"),
    ):
        index.write_text(json.dumps(damaged))
        with pytest.raises(ExportError, match=message):
            open_checkpoint(folder.parent)
    index.write_text("[" * 100_000)
    with pytest.raises(ExportError, match="lists no weights: RecursionError"):
        open_checkpoint(folder.parent)
    index.write_text(json.dumps({"weight_map": {"x": "../vae/diffusion_pytorch_model.safetensors"}}))
    with pytest.raises(ExportError, match=r"lists \.\./vae/\S+; it must list \.safetensors files in the same folder"):
        open_checkpoint(folder.parent)


def test_shards_without_their_index_are_told_what_is_missing(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "sharded", max_shard_size="20KB") / "transformer"
    (folder / "diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(
        ExportError,
        match=r"such as \S+-00001-of-\d{5}\.safetensors, and lacks \S+\.index\.json, .* Get the index",
    ):
        open_checkpoint(folder.parent)


@pytest.mark.parametrize("name", [*WEIGHTS.values(), "model_index.json", "vae/config.json", "tokenizer/tokenizer.json"])
def test_a_link_to_nothing_is_told(copy: Path, name: str) -> None:
    (copy / name).unlink()
    (copy / name).symlink_to("../../blobs/pruned")
    with pytest.raises(ExportError, match=rf"{name} is a broken link; download the file again"):
        open_checkpoint(copy).tokenizer()


def test_a_shard_that_is_a_link_to_nothing_is_told(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "sharded", max_shard_size="20KB") / "transformer"
    *_, last = sorted(folder.glob("*.safetensors"))
    last.unlink()
    last.symlink_to("../../blobs/pruned")
    with pytest.raises(ExportError, match=rf"transformer/{last.name} is a broken link; download the file again"):
        open_checkpoint(folder.parent)


@pytest.mark.parametrize("component", WEIGHTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(copy: Path, component: str, value: float) -> None:
    file = copy / WEIGHTS[component]
    weights = load_file(file)
    name = sorted(weights)[-1]
    weights[name].view(-1)[0] = value
    rewrite(file, weights)
    message = rf"{component} holds NaN or infinity in 1 weight \({re.escape(name)}\)"
    with pytest.raises(ExportError, match=message):
        open_checkpoint(copy).load(component)
