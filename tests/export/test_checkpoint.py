"""What is opened, what is refused, and what the refusal says."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from mutoscope_export.checkpoint import open_checkpoint
from mutoscope_export.errors import ExportError
from mutoscope_export.random_checkpoint import random_checkpoint
from safetensors.torch import load_file, save_file

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def copy(wan_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own to spoil."""
    return Path(shutil.copytree(wan_checkpoint, tmp_path / "copy"))


def edit(file: Path, change: Change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


REFUSED_INDEXES: dict[str, tuple[Change, str]] = {
    "another pipeline": (lambda c: c.update(_class_name="FluxPipeline"), "'FluxPipeline'; supported: WanPipeline"),
    "image to video": (lambda c: c.update(_class_name="WanImageToVideoPipeline"), "supported: WanPipeline"),
    "no pipeline at all": (lambda c: c.pop("_class_name"), "None; supported: WanPipeline"),
    "a list for a name": (lambda c: c.update(_class_name=["WanPipeline"]), "supported: WanPipeline"),
    "two transformers": (
        lambda c: c.update(transformer_2=["diffusers", "WanTransformer3DModel"]), "transformer_2 .* Wan 2.2 A14B",
    ),
    "a boundary between two transformers": (lambda c: c.update(boundary_ratio=0.9), "boundary_ratio .* Wan 2.2 A14B"),
    "timesteps for each token": (lambda c: c.update(expand_timesteps=True), "expand_timesteps .* TI2V 5B"),
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
    "another tokenizer": (
        lambda c: c.update(tokenizer=["transformers", "CLIPTokenizer"]), "'CLIPTokenizer'.; supported: transformers.T5",
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
    "latents of another width": ("vae/config.json", lambda c: c.update(z_dim=5), "in_channels .* 4, z_dim .* 5"),
    "a scale that the layers do not have": (
        "vae/config.json", lambda c: c.update(scale_factor_spatial=16), "scale_factor_spatial .* 16, .* 8",
    ),
    "pixels of another patch": ("vae/config.json", lambda c: c.update(out_channels=12), "out_channels .* 12, .* 3;"),
    "too few means": ("vae/config.json", lambda c: c["latents_mean"].pop(), "latents_mean is 3, z_dim .* 4"),
    "too few deviations": ("vae/config.json", lambda c: c["latents_std"].pop(), "latents_std is 3, z_dim .* 4"),
    "words for numbers": ("transformer/config.json", lambda c: c.update(num_layers="two"), "wrong kind: TypeError"),
    "null for a list": ("vae/config.json", lambda c: c.update(dim_mult=None), "wrong kind: TypeError"),
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


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "weights.pickle"])
def test_pickled_weights_are_refused_even_beside_safetensors(copy: Path, name: str) -> None:
    (copy / "text_encoder" / name).write_bytes(b"")
    with pytest.raises(ExportError, match=rf"text_encoder holds {name}, .*safe_serialization=True"):
        open_checkpoint(copy)


def test_weights_that_are_missing_or_damaged_are_refused_when_they_are_loaded(copy: Path) -> None:
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ExportError, match=r"vae/diffusion_pytorch_model\.safetensors is damaged"):
        open_checkpoint(copy).load("vae")
    weights.unlink()
    with pytest.raises(ExportError, match=r"vae has no \.safetensors file"):
        open_checkpoint(copy).load("vae")


@pytest.mark.parametrize("component", ["text_encoder", "transformer", "vae"])
def test_weights_that_are_not_exactly_those_of_the_class_are_refused(copy: Path, component: str) -> None:
    (file,) = (copy / component).glob("*.safetensors")
    weights = load_file(file)
    name = next(name for name in sorted(weights) if name.startswith(("blocks.1", "decoder", "encoder.block.1")))
    save_file({other: value for other, value in weights.items() if other != name}, file, {"format": "pt"})
    with pytest.raises(ExportError, match=rf"{component} of copy lacks 1 weights: {re.escape(name)}\. Get"):
        open_checkpoint(copy).load(component)
    save_file({**weights, "x": torch.zeros(1)}, file, {"format": "pt"})
    with pytest.raises(ExportError, match=rf"{component} of copy has besides those of its class 1 weights: x\. Get"):
        open_checkpoint(copy).load(component)
    save_file({**weights, name: torch.zeros(3, 5, 7)}, file, {"format": "pt"})
    with pytest.raises(ExportError, match=rf"has in other shapes .* 1 weights: {re.escape(name)}\. Get"):
        open_checkpoint(copy).load(component)


def test_weights_in_a_type_that_is_not_read_are_refused(copy: Path) -> None:
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: value.to(torch.float8_e4m3fn) for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ExportError, match="vae has weights in F8_E4M3; supported: BF16, F16, F32"):
        open_checkpoint(copy).load("vae")


def test_damaged_json_is_refused_by_its_name(copy: Path) -> None:
    (copy / "vae" / "config.json").write_text("{")
    with pytest.raises(ExportError, match=r"vae/config\.json is not JSON"):
        open_checkpoint(copy)
    (copy / "vae" / "config.json").unlink()
    with pytest.raises(ExportError, match=r"vae/config\.json is missing"):
        open_checkpoint(copy)


def test_a_folder_that_is_no_checkpoint_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"has no model_index\.json.*Diffusers layout"):
        open_checkpoint(tmp_path)
    with pytest.raises(ExportError, match=r"not a folder, and not a hub id such as"):
        open_checkpoint(tmp_path / "nowhere")


def test_an_unreachable_hub_gives_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ExportError, match=r"Some/Model .* no route to host.*download it elsewhere"):
        open_checkpoint("Some/Model")


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
    edit(copy / "model_index.json", lambda index: index.update(expand_timesteps=True))
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.download)
    with pytest.raises(ExportError, match=r"Some/Model@c0ffee is refused: expand_timesteps"):
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
