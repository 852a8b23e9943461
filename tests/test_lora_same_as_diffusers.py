"""Networks with a LoRA beside their weights give what Diffusers and PEFT give with the same file fused into them.

Where these drop or refuse tensors of a file, its sums `W + s·B·A` are made here, in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from mutoscope import Lora, VideoRequest
from mutoscope.bundle.bundle import Bundle
from mutoscope.planning.loras import settle_loras
from mutoscope_engines.backends import load_backend
from mutoscope_engines.chain import Chain
from mutoscope_engines.difference import relative_l2
from mutoscope_engines.session import SessionOptions
from mutoscope_export.families.wan import denoiser, own_classes
from safetensors.torch import save_file
from torch import Tensor

from tests.loras import a_lora

STRENGTH = 0.7
RANK = 4
Fused = Callable[[Path], WanTransformer3DModel]


@pytest.fixture(scope="module")
def example(wan_checkpoint: Path) -> dict[str, Tensor]:
    inputs = denoiser.example_inputs(WanTransformer3DModel.from_pretrained(wan_checkpoint / "transformer"))
    return inputs | {"guidance_weights": torch.tensor([0.25, 0.75])}  # as for any comparison of a velocity


def ours(bundle: Path, example: Mapping[str, Tensor], *loras: Lora, precision: str = "fp32") -> np.ndarray:
    """What the graphs of the bundle make of the example, through ONNX Runtime."""
    opened, backend = Bundle.open(bundle, verify=False), load_backend("onnxruntime")
    settled = settle_loras(VideoRequest(prompt="", loras=loras), opened.manifest, precision)
    parts = opened.manifest.graphs_of("denoiser", precision, with_loras=bool(loras))
    with Chain([backend.open(opened.path(graph.file), SessionOptions()) for graph in parts]) as session:
        feeds = {name: value.numpy() for name, value in example.items()} | settled.feeds("denoiser")
        result: np.ndarray = session.run(feeds)["next_state"].numpy()
    return result


def plain(checkpoint: Path) -> WanTransformer3DModel:
    return WanTransformer3DModel.from_pretrained(checkpoint / "transformer")


def fused(checkpoint: Path, *loras: Lora) -> WanTransformer3DModel:
    """By Diffusers and PEFT, one file after the other."""
    transformer = plain(checkpoint)
    pipeline = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=transformer)
    for lora in loras:
        pipeline.load_lora_weights(str(Path(lora.path).parent), weight_name=Path(lora.path).name)
        pipeline.fuse_lora(components=["transformer"], lora_scale=lora.strength)
        pipeline.unload_lora_weights()
    return transformer


def difference(found: np.ndarray, transformer: Any, example: Mapping[str, Tensor]) -> float:
    with torch.no_grad():
        return relative_l2([(found, own_classes.next_state(transformer, example).numpy())])


@pytest.mark.parametrize("spelling, alpha", [("peft", None), ("peft", 6.0), ("original", 2.0), ("kohya", 2.0)])
def test_the_network_gives_what_diffusers_and_peft_give(
    wan_bundle: Path, wan_checkpoint: Path, example: dict[str, Tensor], tmp_path: Path, spelling: str, alpha: float
) -> None:
    pytest.importorskip("peft")
    lora = Lora(a_lora(plain(wan_checkpoint), tmp_path / "l.safetensors", spelling=spelling, alpha=alpha), STRENGTH)
    found = ours(wan_bundle, example, lora)
    assert difference(found, fused(wan_checkpoint, lora), example) < 1e-5
    assert difference(found, plain(wan_checkpoint), example) > 0.03


def test_several_loras_of_other_ranks_add_up(
    wan_bundle: Path, wan_checkpoint: Path, example: dict[str, Tensor], tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    transformer = plain(wan_checkpoint)
    loras = [
        Lora(a_lora(transformer, tmp_path / "a.safetensors", spelling="peft", rank=2), STRENGTH),
        Lora(a_lora(transformer, tmp_path / "b.safetensors", spelling="original", alpha=3.0, seed=5), -0.4),
    ]
    assert difference(ours(wan_bundle, example, *loras), fused(wan_checkpoint, *loras), example) < 1e-5


def test_layers_outside_the_blocks_and_blocks_that_a_file_leaves_out_are_served(
    wan_bundle: Path, wan_checkpoint: Path, example: dict[str, Tensor], tmp_path: Path
) -> None:
    """Of these Diffusers drops some and refuses the others: distilled LoRAs have them."""
    transformer, generator, tensors = plain(wan_checkpoint), torch.Generator().manual_seed(2), dict[str, Tensor]()
    for name, stem in {
        "condition_embedder.time_proj": "time_projection.1",
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "proj_out": "head.head",
        "patch_embedding": "patch_embedding",
        "blocks.1.ffn.net.2": "blocks.1.ffn.2",
    }.items():
        weight = transformer.get_submodule(name).weight
        down = torch.randn(RANK, *weight.shape[1:], generator=generator)
        up = 0.1 * torch.randn(weight.shape[0], RANK, generator=generator)
        tensors |= {f"diffusion_model.{stem}.lora_down.weight": down, f"diffusion_model.{stem}.lora_up.weight": up}
        tensors[f"diffusion_model.{stem}.alpha"] = torch.tensor(2.0)
        change = (up @ down.flatten(1)).reshape(weight.shape)
        weight.data += STRENGTH * 2.0 / RANK * change
    save_file(tensors, tmp_path / "l.safetensors")
    found = ours(wan_bundle, example, Lora(tmp_path / "l.safetensors", STRENGTH))
    assert difference(found, transformer, example) < 1e-5
    assert difference(found, plain(wan_checkpoint), example) > 0.03


def test_in_int8_the_lora_is_as_exact_as_the_rest(
    wan_bundle: Path, wan_checkpoint: Path, example: dict[str, Tensor], tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    lora = Lora(a_lora(plain(wan_checkpoint), tmp_path / "l.safetensors", spelling="peft"), STRENGTH)
    without = difference(ours(wan_bundle, example, precision="int8"), plain(wan_checkpoint), example)
    with_it = difference(ours(wan_bundle, example, lora, precision="int8"), fused(wan_checkpoint, lora), example)
    assert 0 < with_it < 1.5 * without < 0.05
