"""What is opened, what is refused, and what the refusal says."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from mutoscope_export.errors import ExportError
from mutoscope_export.families.wan.random_checkpoint import random_checkpoint
from mutoscope_export.opening import open_checkpoint

from tests.export.spoiling import edit

Change = Callable[[dict[str, Any]], Any]

REFUSED_INDEXES: dict[str, tuple[Change, str]] = {
    "another pipeline": (lambda c: c.update(_class_name="FluxPipeline"), "'FluxPipeline'; supported: WanPipeline"),
    "image to video": (lambda c: c.update(_class_name="WanImageToVideoPipeline"), "out_channels 4; supported in image"),
    "no pipeline at all": (lambda c: c.pop("_class_name"), "None; supported: WanPipeline"),
    "a list for a name": (lambda c: c.update(_class_name=["WanPipeline"]), "supported: WanPipeline"),
    "a second transformer that is not there": (
        lambda c: c.update(transformer_2=["diffusers", "WanTransformer3DModel"]),
        "transformer_2/config.json is missing",
    ),
    "a boundary without a second transformer": (
        lambda c: c.update(boundary_ratio=0.9), "boundary_ratio is 0.9 and transformer_2 .* Wan 2.2 A14B",
    ),
    "another text encoder": (
        lambda c: c.update(text_encoder=["transformers", "CLIPTextModel"]), "'CLIPTextModel'.; supported: trans.*UMT5",
    ),
    "another VAE": (
        lambda c: c.update(vae=["diffusers", "AutoencoderKL"]), "'AutoencoderKL'.; supported: diffusers.AutoencoderKLW",
    ),
    "code of its own": (
        lambda c: c.update(vae=["my_code", "AutoencoderKLWan"]), "'my_code', .*; supported: diffusers.AutoencoderKLWan",
    ),
    "a module within a library": (lambda c: c.update(vae=["", "diffusers.AutoencoderKLWan"]), "supported: diffusers"),
    "no pair": (lambda c: c.update(vae="AutoencoderKLWan"), "supported: diffusers.AutoencoderKLWan"),
    "a tokenizer of one's own code": (
        lambda c: c.update(tokenizer=["my_code", "T5Tokenizer"]),
        "'my_code', 'T5Tokenizer'.; supported: transformers.T5.*, any other tokenizer of transformers with",
    ),
    "another scheduler": (
        lambda c: c.update(scheduler=["diffusers", "DDPMScheduler"]), "'DDPMScheduler'.; supported: diffusers.UniPC",
    ),
    "a missing component": (lambda c: c.pop("vae"), "the vae of copy is None; supported: diffusers.AutoencoderKLWan"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_INDEXES)
def test_an_index_of_something_else_is_refused_by_name(copy: Path, case: str) -> None:
    change, message = REFUSED_INDEXES[case]
    edit(copy / "model_index.json", change)
    with pytest.raises(ExportError, match=message):
        open_checkpoint(copy)


REFUSED_CONFIGS: dict[str, tuple[str, Change, str]] = {
    "image conditioning": ("transformer/config.json", lambda c: c.update(image_dim=8), "image_dim"),
    "channels for an image": ("transformer/config.json", lambda c: c.update(in_channels=9), "in_channels"),
    "text of another width": ("transformer/config.json", lambda c: c.update(text_dim=17), "text_dim .* 17, d_model"),
    "latents of another width": ("vae/config.json", lambda c: c.update(z_dim=5), "out_channels .* 4, z_dim .* 5"),
    "a scale that the layers do not have": (
        "vae/config.json", lambda c: c.update(scale_factor_spatial=16), "scale_factor_spatial .* 16, .* 8",
    ),
    "pixels of another patch": ("vae/config.json", lambda c: c.update(out_channels=12), "out_channels .* 12, .* 3;"),
    "too few means": ("vae/config.json", lambda c: c["latents_mean"].pop(), "latents_mean is 3, z_dim .* 4"),
    "too few deviations": ("vae/config.json", lambda c: c["latents_std"].pop(), "latents_std is 3, z_dim .* 4"),
    "words for numbers": ("transformer/config.json", lambda c: c.update(num_layers="two"), "wrong type: TypeError"),
    "null for a list": ("vae/config.json", lambda c: c.update(dim_mult=None), "wrong type: TypeError"),
    "an ungated text encoder": (
        "text_encoder/config.json", lambda c: c.update(feed_forward_proj="relu", is_gated_act=False), "gated-gelu",
    ),
    "noise levels that are no flow": (
        "scheduler/scheduler_config.json", lambda c: c.update(use_flow_sigmas=False), "use_flow_sigmas",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_CONFIGS)
def test_a_configuration_that_cannot_be_honoured_is_refused_before_weights_are_read(copy: Path, case: str) -> None:
    file, change, message = REFUSED_CONFIGS[case]
    edit(copy / file, change)
    for weights in copy.rglob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ExportError, match=message):
        open_checkpoint(copy)


CONTRADICTIONS: dict[str, tuple[str, Change, str]] = {
    # Diffusers makes the class that the index names; `from_diffusers` alone would follow the other file.
    "a scheduler of two classes, by its own file": (
        "scheduler/scheduler_config.json", lambda c: c.update(_class_name="FlowMatchEulerDiscreteScheduler"),
        "the scheduler of copy is UniPCMultistepScheduler, and scheduler/scheduler_config.json says 'FlowMatchEulerD",
    ),
    "a scheduler of two classes, by the index": (
        "model_index.json", lambda c: c.update(scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"]),
        "is FlowMatchEulerDiscreteScheduler, and scheduler/scheduler_config.json says 'UniPCM.*; make them agree",
    ),
    "a VACE transformer": (
        "transformer/config.json", lambda c: c.update(_class_name="WanVACETransformer3DModel"), "'WanVACETransformer3D",
    ),
    "another VAE": ("vae/config.json", lambda c: c.update(_class_name="AutoencoderKLQwenImage"), "'AutoencoderKLQwen"),
    "another encoder": (
        "text_encoder/config.json", lambda c: c.update(architectures=["T5EncoderModel"]), "says .'T5EncoderModel'.",
    ),
    "a quantized transformer": (
        "transformer/config.json",
        lambda c: c.update(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "transformer of copy is quantized .*bitsandbytes.* not quantized",
    ),
    "a quantization that says nothing": (
        "text_encoder/config.json", lambda c: c.update(quantization_config={}), "text_encoder of copy is quantized",
    ),
    "an encoder and another": (
        "text_encoder/config.json", lambda c: c.update(architectures=["UMT5Model", "T5Model"]), "'UMT5Model', 'T5Mod",
    ),
    "a quantized text encoder": (
        "text_encoder/config.json", lambda c: c.update(quantization_config={"quant_method": "torchao"}), "torchao",
    ),
}  # fmt: skip


def test_weights_that_only_transformers_would_find_are_refused(copy: Path) -> None:
    adapter = copy / "text_encoder" / "adapter_config.json"
    adapter.write_text("{}")
    with pytest.raises(ExportError, match=r"text_encoder holds adapter_config\.json, .* Merge it"):
        open_checkpoint(copy)
    adapter.unlink()
    shutil.copy(copy / "text_encoder/model.safetensors", copy / "text_encoder/other.safetensors")
    edit(copy / "text_encoder/config.json", lambda config: config.update(transformers_weights="other.safetensors"))
    with pytest.raises(ExportError, match=r"text_encoder/config\.json names 'other\.safetensors' under transformers_w"):
        open_checkpoint(copy)


@pytest.mark.parametrize("named", [[], ["UMT5ForConditionalGeneration"], ["UMT5Model"]])
def test_a_text_encoder_may_name_no_class_or_a_larger_one_around_it(copy: Path, named: list[str]) -> None:
    edit(copy / "text_encoder/config.json", lambda config: config.update(architectures=named))
    open_checkpoint(copy)


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_what_two_files_say_differently_is_refused_before_weights_are_read(copy: Path, case: str) -> None:
    file, change, message = CONTRADICTIONS[case]
    edit(copy / file, change)
    for weights in copy.rglob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ExportError, match=message):
        open_checkpoint(copy)


def test_a_class_that_only_the_index_names_is_that_of_the_component(copy: Path) -> None:
    for file in ("scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json"):
        edit(copy / file, lambda config: config.pop("_class_name"))
    edit(copy / "text_encoder/config.json", lambda config: config.pop("architectures"))
    assert open_checkpoint(copy).scheduler["_class_name"] == "UniPCMultistepScheduler"


@pytest.mark.parametrize("error", [ImportError("no bitsandbytes"), PackageNotFoundError("bitsandbytes")])
def test_a_package_that_a_loader_misses_is_named(
    wan_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def loader(*arguments: Any, **options: Any) -> None:
        raise error

    opened = open_checkpoint(wan_checkpoint)
    monkeypatch.setattr(opened.model_class("vae"), "from_pretrained", loader)
    with pytest.raises(ExportError, match=r"vae of small-wan .* a package is missing: .*bitsandbytes\. Install it"):
        opened.load("vae")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.PT", "model.ckpt", "weights.pickle"])
def test_pickled_weights_are_refused_even_beside_safetensors(copy: Path, name: str) -> None:
    (copy / "text_encoder" / name).write_bytes(b"")
    with pytest.raises(ExportError, match=rf"text_encoder holds {name}, .*safe_serialization=True"):
        open_checkpoint(copy)


def test_what_macos_leaves_beside_a_pickle_is_none(copy: Path) -> None:
    (copy / "text_encoder" / "._pytorch_model.bin").write_bytes(b"")
    open_checkpoint(copy)


def test_damaged_json_is_refused_by_its_name(copy: Path) -> None:
    for damaged in ("{", "[" * 100_000):
        (copy / "vae" / "config.json").write_text(damaged)
        with pytest.raises(ExportError, match=r"vae/config\.json is not JSON"):
            open_checkpoint(copy)
    (copy / "vae" / "config.json").unlink()
    with pytest.raises(ExportError, match=r"vae/config\.json is missing"):
        open_checkpoint(copy)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"has no model_index\.json.*Diffusers layout"):
        open_checkpoint(tmp_path)


def test_the_hub_is_told_nothing_of_what_is_installed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def agent() -> str:
        return huggingface_hub.utils.build_hf_headers()["user-agent"]

    told: list[str] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        told.append(agent())
        return str(copy)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    open_checkpoint("Some/Model")
    assert "torch" in agent()  # as the library has it outside of our downloads
    assert told and all("torch" not in said for said in told)


class Hub:
    """A hub with one repository, which copies what is asked for into a folder named after the revision."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.snapshot = repository, cache / "c0ffee"

    def download(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert revision in (None, self.snapshot.name)
        for path in self.repository.rglob("*"):
            relative = path.relative_to(self.repository).as_posix()
            if path.is_file() and any(fnmatch(relative, pattern) for pattern in allow_patterns):
                (self.snapshot / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, self.snapshot / relative)
        return str(self.snapshot)


def test_from_the_hub_comes_what_export_reads_at_one_revision(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(copy, tmp_path)
    wanted = {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()}
    for name in ("vae/evil.py", "vae/weights.bin", "other.safetensors", "image_encoder/model.safetensors"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("not to be fetched")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.download)
    opened = open_checkpoint("Some/Model")
    assert opened.name == "Some/Model@c0ffee"
    assert {path.relative_to(hub.snapshot) for path in hub.snapshot.rglob("*") if path.is_file()} == wanted


def test_what_is_refused_has_cost_no_download_of_weights(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(copy, tmp_path)
    edit(copy / "model_index.json", lambda index: index.update(boundary_ratio=0.9))
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.download)
    with pytest.raises(ExportError, match=r"Some/Model@c0ffee is refused: boundary_ratio"):
        open_checkpoint("Some/Model")
    assert list(hub.snapshot.rglob("*.json")) and not list(hub.snapshot.rglob("*.safetensors"))


def test_components_keep_the_type_they_are_stored_in_and_shards_are_read(tmp_path: Path) -> None:
    root = random_checkpoint(tmp_path / "sharded", dtype=torch.bfloat16, max_shard_size="20KB")
    assert (root / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    opened = open_checkpoint(root)
    transformer = opened.load("transformer")
    assert transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    reference = type(transformer).from_pretrained(root / "transformer", torch_dtype=torch.float32)
    for name, expected in reference.named_parameters():
        assert torch.equal(transformer.get_parameter(name).float(), expected), name


def test_every_file_that_is_read_is_hashed(wan_checkpoint: Path) -> None:
    hashes = open_checkpoint(wan_checkpoint).sha256_of_files()
    files = {path.relative_to(wan_checkpoint).as_posix() for path in wan_checkpoint.rglob("*") if path.is_file()}
    assert set(hashes) == files
    weights = "vae/diffusion_pytorch_model.safetensors"
    assert hashes[weights] == hashlib.sha256((wan_checkpoint / weights).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        (None, "unknown - see the checkpoint"),
        ("# A model\nlicense: mit\n", "unknown - see the checkpoint"),
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# A model\n", "apache-2.0"),
        ('---\nlanguage: en\nlicense: "other" \n---\n', "other"),
    ],
)
def test_the_licence_is_what_the_readme_declares(copy: Path, readme: str | None, expected: str) -> None:
    if readme is not None:
        (copy / "README.md").write_text(readme)
    assert open_checkpoint(copy).license() == expected


def test_a_readme_in_another_encoding_still_has_its_licence(copy: Path) -> None:
    (copy / "README.md").write_bytes("---\nlicense: mit\nauthor: André\n---\n".encode("latin-1"))
    assert open_checkpoint(copy).license() == "mit"
